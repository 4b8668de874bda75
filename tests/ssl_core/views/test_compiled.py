"""Loops as machine code: with and without a folder to keep it, and on processors that have less."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssl_core.views.compiled import compiled

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
    exec("def total(x):\n    return x.sum()", made)  # a function without a file has no folder beside it
    assert compiled(made["total"])(np.arange(4.0)) == 6.0


@pytest.mark.slow
def test_views_are_the_same_bytes_on_every_processor(tmp_path: Path) -> None:
    made: set[str] = set()
    for processor in ("generic", "host"):
        environment = {**os.environ, "NUMBA_CPU_NAME": processor, "NUMBA_CACHE_DIR": str(tmp_path / processor)}
        command = [sys.executable, "-c", _VIEWS]
        made.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
        assert any((tmp_path / processor).rglob("*.nbc"))
    assert len(made) == 1
