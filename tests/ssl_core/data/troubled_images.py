"""Images in whose way things come, for loader processes to read: a module of its own, which imports quickly there."""

import os
import signal
import sys
import time
from typing import Any

import numpy as np

from ssl_core.data.quarantine import Quarantine
from ssl_core.errors import Resumable, UserError

SAMPLES = 64


class Particular(Exception):
    """An exception that cannot be made from its message alone, and so does not survive pickling."""

    def __init__(self, what: str, *, why: str) -> None:
        super().__init__(f"{what} because of {why}")


TROUBLES: dict[str, Exception] = {
    "user": UserError("no sample of the shard decodes"),
    "resumable": Resumable("the data store is away"),
    "os": FileNotFoundError(2, "No such file or directory", "shard-00000.tar"),
    "particular": Particular("it is broken", why="rust"),
}


class TroubledImages:
    """The image at a position is its number; at one position there is trouble.

    Args:
        trouble: one of `TROUBLES`, `kill` (of the process that reads), `wait` (forever), or `unreadable`
            (nobody else can even begin).
        at: the position; -1: all.
        seconds: that each image takes.
    """

    def __init__(self, trouble: str | None = None, *, at: int = -1, seconds: float = 0.0) -> None:
        self._trouble, self._at, self._seconds = trouble, at, seconds
        self.quarantine = Quarantine(SAMPLES)

    def __reduce__(self) -> Any:
        if self._trouble == "unreadable":
            return sys.exit, (3,)  # what is done to read it elsewhere
        return self._elsewhere, (self._trouble, self._at, self._seconds)

    @staticmethod
    def _elsewhere(trouble: str | None, at: int, seconds: float) -> "TroubledImages":
        return TroubledImages(trouble, at=at, seconds=seconds)

    def image(self, position: int) -> np.ndarray[Any, Any]:
        time.sleep(self._seconds)
        if self._trouble is not None and self._at in (-1, position):
            if self._trouble == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self._trouble == "wait":
                time.sleep(3600)
            raise TROUBLES[self._trouble]
        return np.full((4, 4, 1), position, np.uint8)


class NumberRecipe:
    """Two views, of 64 × 64 pixels, that hold the image's number plus the low bits of the view's key."""

    class _Views:
        name, count, height, width, channels = "views", 2, 64, 64, 1

    groups = (_Views(),)
    num_views = 2

    def draw(self, keys: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return keys

    def __call__(self, image: np.ndarray[Any, Any], numbers: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        pixels = (image[0, 0, 0] + numbers % 251).astype(np.uint8)
        return [np.broadcast_to(pixels[:, None, None, None], (2, 64, 64, 1))]
