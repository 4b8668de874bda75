"""The files of a folder as one archive, which Ray unpacks on every node as the working directory of a job.

Same files, same archive: its name is made of its content, and what the cluster has is not sent again. Left out are what
`.gitignore` and `.rayignore` say, `.git`, links to folders, environments and caches, and files that hold secrets by
their name.
"""

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from cluster.command_line import BadInput
from cluster.ignore_rules import Rule, left_out, rules_of

LIMIT_BYTES = 100 * 2**20  # the largest body that Ray's dashboard takes; the 512 MiB of Ray's own words come after it
NEVER = (
    *(".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", "*.pyc", "*.egg-info"),
    *(".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis", ".ipynb_checkpoints", "mlruns", "mlflow.db"),
    *(".env", ".env.*", ".envrc", ".netrc", ".pypirc", ".git-credentials", ".aws", ".ssh", ".kube", "auth_token"),
    *("environment.sh", "*.pem", "*.key", "id_rsa", "id_ecdsa", "id_ed25519"),
)
_IGNORE_FILES = (".gitignore", ".rayignore")
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the archive must not depend on when a file was written


@dataclass(frozen=True, kw_only=True)
class Package:
    """An archive; `content` is an open file that begins with its first byte."""

    name: str  # <digest>.zip, as Ray names packages
    size: int  # bytes
    files: int
    content: IO[bytes] = field(repr=False)

    @property
    def uri(self) -> str:
        """As a job's `working_dir` names it."""
        return f"gcs://{self.name}"


def pack(folder: Path, exclude: Sequence[str] = (), *, limit_bytes: int = LIMIT_BYTES) -> Package:
    """Put a folder's files into an archive on the local disk.

    Args:
        folder: it becomes the top of the archive.
        exclude: more lines as in `.gitignore`.
        limit_bytes: of the archive.

    Raises:
        BadInput: no folder, one that nobody means (a home), or an archive beyond the limit: names what is large.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise BadInput(f"folder={folder} is not a folder")
    if folder in (Path("/"), _home()):
        raise BadInput(f"folder={folder} would send all of it: start in the project's folder, or give folder=<path>")
    paths = sorted(files_of(folder, exclude))
    content = tempfile.TemporaryFile()  # noqa: SIM115 - the package is handed on with it
    with ZipFile(content, "w", ZIP_DEFLATED) as archive:
        for path in paths:
            _add(archive, folder, path)
            if content.tell() > limit_bytes:
                raise BadInput(_too_large(folder, paths, limit_bytes))
    size = content.tell()
    content.seek(0)
    digest = hashlib.file_digest(content, "sha256").hexdigest()[:40]
    content.seek(0)
    return Package(name=f"_ray_pkg_{digest}.zip", size=size, files=len(paths), content=content)


def files_of(folder: Path, exclude: Sequence[str] = ()) -> Iterator[str]:
    """Relative paths, with `/`, of the files of a folder that are not left out; links to files count as files."""
    top = _checkout_of(folder)
    place = "".join(f"{name}/" for name in folder.relative_to(top).parts)
    rules: list[Rule] = []
    for parent in reversed(Path(place).parents if place else ()):
        rules += _rules_in(top, "" if parent == Path() else f"{parent.as_posix()}/")
    for path in _below(top, place, rules, rules_of([*NEVER, *exclude], place)):
        yield path.removeprefix(place)


def _checkout_of(folder: Path) -> Path:
    """The top of the checkout that a folder is in, whose rules git follows below it too; or the folder itself."""
    return next((one for one in (folder, *folder.parents) if (one / ".git").exists()), folder)


def _rules_in(top: Path, place: str) -> list[Rule]:
    """Of the files in one folder that say what to ignore."""
    rules: list[Rule] = []
    for name in _IGNORE_FILES:
        with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
            text = (top / place / name).read_text(encoding="utf-8", errors="surrogateescape")
            rules += rules_of(text.splitlines(), place)
    return rules


def _below(top: Path, place: str, rules: list[Rule], always: list[Rule]) -> Iterator[str]:
    # what a file takes in again with `!` is not one of those that are always left out
    rules = [*rules, *_rules_in(top, place)]
    with os.scandir(top / place) as entries:
        for entry in entries:
            path, is_folder = f"{place}{entry.name}", entry.is_dir(follow_symlinks=False)
            if any(left_out(path, some, is_folder=is_folder) for some in (rules, always)):
                continue
            if is_folder:
                yield from _below(top, f"{path}/", rules, always)
            elif entry.is_file():
                yield path


def _add(archive: ZipFile, folder: Path, path: str) -> None:
    try:
        info = ZipInfo(path, _EARLIEST)
        with (folder / path).open("rb") as source:
            executable = os.fstat(source.fileno()).st_mode & stat.S_IXUSR
            info.external_attr = (stat.S_IFREG | (0o755 if executable else 0o644)) << 16
            info.compress_type = ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as target:
                while block := source.read(2**20):
                    target.write(block)
    except (PermissionError, UnicodeEncodeError) as error:
        raise BadInput(f"{folder / path!r} cannot be packed ({error}): leave it out by exclude=[…]") from error


def _too_large(folder: Path, paths: Sequence[str], limit_bytes: int) -> str:
    """The error, with the three places that hold most."""
    sizes: dict[str, int] = {}
    for path in paths:
        top = path.split("/")[0]
        sizes[top] = sizes.get(top, 0) + (folder / path).stat().st_size
    largest = sorted(sizes, key=lambda top: -sizes[top])[:3]
    return (
        f"{folder} is more than the {limit_bytes / 2**20:g} MiB that a job's files may be; largest are "
        f"{', '.join(f'{top} ({sizes[top] / 2**20:.1f} MiB)' for top in largest)}: leave out what the job "
        "does not need by exclude=[…] or in .rayignore; data and runs belong on storage that the nodes share"
    )


def _home() -> Path | None:
    with suppress(RuntimeError):
        return Path.home().resolve()
    return None
