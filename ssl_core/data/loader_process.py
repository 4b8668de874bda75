"""A loader process, from the inside; what it is told.

It writes views into shared memory, and short answers into a pipe.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ssl_core.data.answering import answer_tasks
from ssl_core.data.lane_views import Images, Recipe, Samples, fill, shapes
from ssl_core.data.quarantine import Quarantine
from ssl_core.data.shared_slots import SlotsElsewhere


@runtime_checkable
class ImagesElsewhere(Images, Protocol):
    """Images that another process reads as well: pickled, they say how. `ssl_core.data.reader.Reader` does."""

    @property
    def quarantine(self) -> Quarantine:
        """The samples that did not decode."""
        ...


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a loader process works on."""

    images: ImagesElsewhere
    recipe: Recipe
    seed: int
    num_lanes: int
    lane_size: int
    threads: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A batch's view groups."""
        return shapes(self.recipe, num_lanes=self.num_lanes, lane_size=self.lane_size)

    @property
    def batch_bytes(self) -> int:
        """Bytes of a batch's views."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def groups(self, memory: np.ndarray) -> dict[str, np.ndarray]:
        """A batch's views in memory of `batch_bytes`, one group after the other."""
        found: dict[str, np.ndarray] = {}
        for name, shape in self.shapes.items():
            size = int(np.prod(shape))
            found[name], memory = memory[:size].reshape(shape), memory[size:]
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Filling:
    """Some samples of a batch, and the slot that it is made in."""

    slot: int
    samples: Samples


class _Filler:
    """Fills in views, and tells which samples it found that do not decode."""

    def __init__(self, work: Work, slots: int) -> None:
        self._work, self._slots = work, SlotsElsewhere(slots, work.batch_bytes)
        self.threads = work.threads

    def do(self, work: Filling) -> None:
        """Fill in some samples' views."""
        groups = self._work.groups(self._slots.memory(work.slot))
        fill(groups, work.samples, images=self._work.images, recipe=self._work.recipe, seed=self._work.seed)

    def news(self) -> Mapping[int, str] | None:
        """The positions, with the reasons."""
        quarantine = self._work.images.quarantine
        return quarantine.merge(quarantine.snapshot()) if quarantine.num_found else None


def main() -> None:
    """Work until standard input ends; the command line has the descriptors of the answers and of the slots."""
    answer_tasks(_Filler)
