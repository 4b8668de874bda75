"""The views of a lane: a pure function of pixels, seed, epoch and draws, whoever computes it and wherever.

Loader processes import this and no torch: they start in a fraction of a second and stay small.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ssl_core import rng


class Images(Protocol):
    """Where pixels come from: `ssl_core.data.reader.Reader`."""

    def image(self, position: int) -> np.ndarray:
        """The image at a position: uint8 [H, W, K]."""
        ...


class Group(Protocol):
    """Views of one size."""

    @property
    def name(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def channels(self) -> int: ...


class Recipe(Protocol):
    """How a sample becomes views: `ssl_core.views.recipes`."""

    @property
    def groups(self) -> tuple[Group, ...]: ...
    @property
    def num_views(self) -> int: ...

    def draw(self, keys: np.ndarray) -> np.ndarray:
        """The random numbers of many samples at once: int64 [n, num_views] to [n, num_views, numbers]."""
        ...

    def __call__(self, image: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
        """uint8 [H, W, K] and a sample's [num_views, numbers] to one uint8 [count, height, width, channels] a group."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Neighbours in a lane, at one step."""

    lane: int  # of the worker's own
    first: int  # where in the lane they begin
    epoch: int
    positions: np.ndarray  # int64 [n]
    draws: np.ndarray  # int64 [n]


class Makers(Protocol):
    """Who makes views while the training goes on: threads, or processes."""

    def start(self, epoch: int, positions: np.ndarray, draws: np.ndarray) -> "Making":
        """Begin with a batch: positions and draws are int64 [lanes, b]."""
        ...

    def close(self) -> None:
        """Drop what is not done, and end."""
        ...


@dataclass(frozen=True, kw_only=True)
class Making:
    """A batch that is being made: where its views will be, and what to wait for until they are."""

    groups: Mapping[str, np.ndarray]
    parts: list[Future[None]]


def shapes(recipe: Recipe, *, num_lanes: int, lane_size: int) -> dict[str, tuple[int, ...]]:
    """What a batch's view groups are: name → [lanes, count, b, height, width, channels]."""
    return {
        group.name: (num_lanes, group.count, lane_size, group.height, group.width, group.channels)
        for group in recipe.groups
    }


def parts_of(epoch: int, positions: np.ndarray, draws: np.ndarray, *, at_least: int = 1) -> Iterator[Samples]:
    """A batch as whole lanes or, where there are fewer lanes than `at_least`, as equal parts of them."""
    num_lanes, lane_size = positions.shape
    size = -(-lane_size // -(-at_least // num_lanes))
    for lane in range(num_lanes):
        for first in range(0, lane_size, size):
            part = slice(first, first + size)
            yield Samples(lane=lane, first=first, epoch=epoch, positions=positions[lane, part], draws=draws[lane, part])


def fill(groups: Mapping[str, np.ndarray], samples: Samples, *, images: Images, recipe: Recipe, seed: int) -> None:
    """Decode each of the samples once and write all its views to their places in a batch."""
    keys = rng.key(seed, "views", samples.epoch, samples.draws[:, None], np.arange(recipe.num_views))
    numbers = recipe.draw(keys)
    outputs = [groups[group.name][samples.lane] for group in recipe.groups]
    for sample, position in enumerate(samples.positions.tolist()):
        made = recipe(images.image(position), numbers[sample])
        for output, group in zip(outputs, made, strict=True):
            output[:, samples.first + sample] = group
