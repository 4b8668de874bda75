"""Loops as machine code: where it is kept, what it is kept apart by, and processors that have less."""

import os
import subprocess
import sys
from collections.abc import Callable
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_core.views import compiled as module
from ssl_core.views.compiled import OPTIONS, code_folder

_VIEWS = """
import hashlib
import numpy as np
from ssl_core import rng
from ssl_core.views import recipe
image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
digest = hashlib.sha256()
for name in ("simclr", "byol"):
    made = recipe(name, image_size=48, blur=0.0)
    for position in range(40):
        numbers = made.draw(rng.key(0, "views", 0, position, np.arange(made.num_views)))
        digest.update(made(image, numbers)[0].tobytes())
print(digest.hexdigest())
"""


_LOOPS = """
from ssl_core.views.compiled import compiled, kept

@compiled
def part(x):
    return x * {factor}

@kept
def total(x):
    return part(x.sum())
"""


def total(source: Path, factor: int) -> Callable[[np.ndarray], float]:
    """A function of a module of its own, as a new process finds it."""
    source.write_text(_LOOPS.format(factor=factor))
    made: dict[str, Any] = {}
    exec(compile(source.read_text(), str(source), "exec"), made)
    return made["total"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that code is kept in."""
    monkeypatch.setattr(module.config, "CACHE_DIR", str(tmp_path / "code"))
    return tmp_path / "code"


def test_nothing_is_written_before_the_first_call(tmp_path: Path, root: Path) -> None:
    made = total(tmp_path / "loops.py", 2)
    assert not root.exists()
    assert made(np.arange(4.0)) == 12.0
    assert len(list(root.rglob("*.nbc"))) == 1


def test_another_process_loads_what_is_kept(tmp_path: Path, root: Path) -> None:
    total(tmp_path / "loops.py", 2)(np.arange(4.0))
    (code,) = root.rglob("*.nbc")
    written = code.stat().st_mtime_ns
    assert total(tmp_path / "loops.py", 2)(np.arange(4.0)) == 12.0
    assert code.stat().st_mtime_ns == written


def test_a_changed_part_changes_the_whole(tmp_path: Path, root: Path) -> None:
    assert total(tmp_path / "loops.py", 2)(np.arange(4.0)) == 12.0
    assert total(tmp_path / "loops.py", 3)(np.arange(4.0)) == 18.0


@pytest.mark.parametrize("kind", ["*.nbi", "*.nbc"])
def test_a_file_that_was_cut_is_made_anew(tmp_path: Path, root: Path, kind: str) -> None:
    total(tmp_path / "loops.py", 2)(np.arange(4.0))
    (cut,) = root.rglob(kind)
    cut.write_bytes(b"")
    assert total(tmp_path / "loops.py", 2)(np.arange(4.0)) == 12.0
    assert not cut.exists()
    assert total(tmp_path / "loops.py", 2)(np.arange(4.0)) == 12.0
    assert cut.stat().st_size > 0


def test_code_that_cannot_be_kept_is_compiled_all_the_same(tmp_path: Path, root: Path) -> None:
    root.write_text("a file where the folder should be")
    assert total(tmp_path / "loops.py", 2)(np.arange(4.0)) == 12.0
    assert not list(tmp_path.rglob("*.nbc"))


def test_code_is_kept_apart_by_file_options_and_processor(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "loops.py"
    folders = {code_folder(unwrap(total(source, 2)))}
    folders.add(code_folder(unwrap(total(source, 3))))
    monkeypatch.setattr(module, "OPTIONS", {**OPTIONS, "fastmath": {"contract"}})
    folders.add(code_folder(unwrap(total(source, 3))))
    monkeypatch.setattr(module.config, "CPU_NAME", "generic")
    folders.add(code_folder(unwrap(total(source, 3))))
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {root}


@pytest.mark.slow
def test_views_are_the_same_bytes_on_every_processor(tmp_path: Path) -> None:
    made: set[str] = set()
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for processor in ({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}, {}):
        command = [sys.executable, "-c", _VIEWS]
        run = subprocess.run(command, env={**environment, **processor}, capture_output=True, text=True, check=True)
        made.add(run.stdout)
    assert len(made) == 1
    assert len(list(tmp_path.iterdir())) == 4  # two files, two kinds of processor
