"""Loops as machine code: where it is kept, what it is kept apart by, and processors that have less."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_core.views import compiled as module
from ssl_core.views.compiled import OPTIONS, code_folder, compiled

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


def test_code_that_cannot_be_kept_is_compiled_all_the_same() -> None:
    made: dict[str, Callable[[np.ndarray], float]] = {}
    exec("def total(x):\n    return x.sum()", made)  # Numba keeps no code of functions without a file
    assert compiled(made["total"])(np.arange(4.0)) == 6.0


def test_code_is_kept_apart_by_file_options_and_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = module.config
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    source = tmp_path / "loops.py"
    source.write_text("one")
    folders = {code_folder(source)}
    source.write_text("two")
    folders.add(code_folder(source))
    monkeypatch.setattr(module, "OPTIONS", {**OPTIONS, "fastmath": {"contract"}})
    folders.add(code_folder(source))
    monkeypatch.setattr(config, "CPU_NAME", "generic")
    folders.add(code_folder(source))
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {tmp_path}


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
