"""What a run was made with: the code's commit, the versions of what computes, the machine. For the record and MLflow.

Nothing heavy is imported; a GPU is named where torch is there already.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "ssl-pipelines",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "numba",
    "ray",
    "mlflow",
    "simplejpeg",
    "opencv-python-headless",
)
SOURCES = ("pipelines", "ssl_core", "configs")  # what a run's weights and numbers depend on
_GIT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Code:
    """The commit that the code was at; `dirty` where files of `SOURCES` were changed or added since."""

    commit: str
    branch: str
    dirty: bool

    def __str__(self) -> str:
        return f"{self.commit[:12]}{' with uncommitted changes' if self.dirty else ''}"


def environment() -> dict[str, Any]:
    """JSON values: `python`, `packages`, `machine`, and `code` (None where the package is no checkout of git)."""
    code = code_at(Path(__file__).resolve().parents[1])
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "machine": _machine(),
        "code": None if code is None else asdict(code),
    }


def code_at(root: Path) -> Code | None:
    """The state of the checkout at `root`.

    None where there is no git, or `root` is not in a repository, or is a place that the repository does not track: a
    package installed below somebody's project is not that project's code.
    """
    try:
        _git(root, "ls-files", "--error-unmatch", f"{SOURCES[0]}/__init__.py")
        commit, branch = _git(root, "rev-parse", "HEAD"), _git(root, "rev-parse", "--abbrev-ref", "HEAD")
        changes = _git(root, "status", "--porcelain", "--", *SOURCES)
    except (OSError, subprocess.SubprocessError):
        return None
    return Code(commit=commit, branch=branch, dirty=bool(changes))


def source_tags(environment: dict[str, Any], command: str) -> dict[str, str]:
    """The tags by which MLflow shows where a run comes from."""
    tags = {"mlflow.source.name": f"pipelines.{command}", "mlflow.source.type": "LOCAL"}
    if environment["code"] is not None:
        code = Code(**environment["code"])
        tags |= {"mlflow.source.git.commit": code.commit, "mlflow.source.git.branch": code.branch}
        tags["mlflow.source.git.dirty"] = str(code.dirty).lower()
    return tags


def _git(root: Path, *words: str) -> str:
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # a status that leaves the index of a user's checkout alone
    command: Sequence[str] = ("git", "-C", str(root), *words)
    done = subprocess.run(command, env=quiet, check=True, capture_output=True, text=True, timeout=_GIT_SECONDS)
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        **_gpus(),
    }


def _gpus() -> dict[str, Any]:
    torch: Any = sys.modules.get("torch", None)
    if not torch or not torch.cuda.is_available():
        return {"gpus": [], "cuda": None}
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"gpus": names, "cuda": torch.version.cuda}


def _processor() -> str:
    """The CPU's name, which Python alone does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
