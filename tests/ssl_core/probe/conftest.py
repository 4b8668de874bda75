"""Labelled sets in memory, easy enough that a classifier learns them and hard enough that it is not perfect."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ssl_core.probe.labelled import LabelledSet

CLASSES = ("ant", "bee", "cat")

MakeSet = Callable[..., LabelledSet]


class ImagesInMemory:
    """`LabelledImages` on arrays."""

    def __init__(self, pixels: NDArray[np.uint8], y: NDArray[np.int64]) -> None:
        self._pixels, self._y = pixels, y

    @property
    def num_samples(self) -> int:
        return len(self._pixels)

    def labels(self) -> NDArray[np.int64]:
        return self._y.copy()

    def image(self, position: int) -> NDArray[np.uint8]:
        return self._pixels[position]


@pytest.fixture
def make_set() -> MakeSet:
    """`make_set(num_samples, seed=…, name=…, classes=…, labels=…)`: noise around one pattern a class."""

    def make(
        num_samples: int = 120,
        *,
        seed: int = 0,
        name: str = "set",
        classes: tuple[str, ...] = CLASSES,
        labels: list[int] | None = None,
    ) -> LabelledSet:
        patterns = np.random.default_rng(0).uniform(90, 166, (len(CLASSES), 8, 8, 3))
        random = np.random.default_rng(seed)
        y = random.integers(0, len(CLASSES), num_samples)
        pixels = (patterns[y] + random.normal(0, 110, (num_samples, 8, 8, 3))).clip(0, 255).astype(np.uint8)
        shown = y if labels is None else np.asarray(labels, np.int64)
        return LabelledSet(images=ImagesInMemory(pixels, shown), classes=classes, name=name, digest=f"digest of {name}")

    return make
