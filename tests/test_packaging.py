"""The wheel holds everything, its commands run outside the checkout, and the constraints pin versions alone."""

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pipelines", "ssl_core", "cluster", "configs")
SHIPPED = {".py", ".yaml", ".typed"}


def pip(*arguments: str | Path) -> None:
    """Run this interpreter's pip without a network."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        *map(str, arguments),
    ]
    subprocess.run(command, check=True, timeout=240, env={**os.environ, "PIP_NO_INDEX": "1"})


@pytest.mark.slow
def test_wheel_holds_every_module_and_config_and_nothing_else(wheel: Path) -> None:
    in_tree = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in SHIPPED
    }
    assert any(name.startswith("configs/model/") for name in in_tree)
    in_wheel = {name for name in ZipFile(wheel).namelist() if not re.match(r"ssl_pipelines-[^/]+\.dist-info/", name)}
    assert in_wheel == in_tree


@pytest.mark.slow
def test_commands_run_from_the_wheel_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    pip("install", "--no-deps", "--target", installed, wheel)
    # -S leaves out .pth files and with them the editable install of the checkout, -P the current folder
    libraries = [str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(libraries)}

    def python(*arguments: str) -> str:
        command = [sys.executable, "-S", "-P", *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert python("-c", "import pipelines; print(pipelines.__file__)").startswith(str(installed))
    commands = [path.stem for path in (ROOT / "pipelines").glob("*.py") if "run_command(" in path.read_text("utf-8")]
    for command in sorted(set(commands) - {"console"}):
        assert f"pipelines.{command}" in python("-m", f"pipelines.{command}", "--help")


def test_constraints_pin_one_version_of_each_library_on_any_platform() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert lines == [f"{canonicalize_name(name)}=={version}" for name, version in sorted(pins.items())]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert [name for name in pins if re.match(r"nvidia|cuda|triton|ssl-pipelines|pip$", name)] == []

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    wanted = [
        Requirement(text)
        for text in [*project["dependencies"], *extras["test"], *extras["benchmark"], *extras["export"]]
    ]
    assert [one.name for one in wanted if pins[canonicalize_name(one.name)] not in one.specifier] == []
