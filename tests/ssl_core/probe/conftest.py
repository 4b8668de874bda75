"""A labelled set in memory, easy enough that a classifier learns it and hard enough that it is not perfect."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from ssl_core.probe.labelled import LabelledSet

CLASSES = ("ant", "bee", "cat")


@dataclass
class ImagesInMemory:
    """`LabelledImages` on arrays; counts which positions were read."""

    pixels: list[NDArray[np.uint8]]
    y: NDArray[np.int64]
    read: list[int] = field(default_factory=list[int])

    @property
    def num_samples(self) -> int:
        return len(self.pixels)

    def labels(self) -> NDArray[np.int64]:
        return self.y.copy()

    def image(self, position: int) -> NDArray[np.uint8]:
        self.read.append(position)
        return self.pixels[position]


def blobs(num_samples: int, *, seed: int, size: int = 8) -> ImagesInMemory:
    """Noise around one pattern a class."""
    patterns = np.random.default_rng(0).uniform(90, 166, (len(CLASSES), size, size, 3))
    random = np.random.default_rng(seed)
    y = random.integers(0, len(CLASSES), num_samples)
    pixels = patterns[y] + random.normal(0, 120, (num_samples, size, size, 3))
    return ImagesInMemory(list(pixels.clip(0, 255).astype(np.uint8)), y)


def labelled(images: ImagesInMemory, *, name: str = "set", classes: tuple[str, ...] = CLASSES) -> LabelledSet:
    """With a digest of the name."""
    return LabelledSet(images=images, classes=classes, name=name, digest=f"digest of {name}")


@pytest.fixture
def train() -> LabelledSet:
    return labelled(blobs(300, seed=1), name="train")


@pytest.fixture
def val() -> LabelledSet:
    return labelled(blobs(120, seed=2), name="val")
