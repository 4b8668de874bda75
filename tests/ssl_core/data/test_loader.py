"""The loader: its batches are what order, keys and recipe say, whatever is made ahead, by however many threads."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core import rng
from ssl_core.data.loader import LaneLoader, Schedule
from ssl_core.data.shares import Share
from ssl_core.lanes import Lanes
from ssl_core.types import LaneBatch

Pixels = np.ndarray[Any, Any]
SIZES = np.asarray([9, 0, 14, 6])
SEED = 4


@dataclass(frozen=True, kw_only=True)
class Square:
    """A view group."""

    name: str
    count: int
    height: int
    width: int
    channels: int = 1


class KeyedRecipe:
    """Views whose pixels are the image's number plus the view's key: two groups of different size."""

    groups: tuple[Square, ...] = (
        Square(name="views", count=2, height=3, width=2),
        Square(name="local", count=1, height=1, width=1),
    )
    num_views = 3

    def draw(self, keys: Pixels) -> Pixels:
        return keys

    def __call__(self, image: Pixels, numbers: Pixels) -> list[Pixels]:
        filled = [(image[0, 0, 0] + key % 251).astype(np.uint8) for key in numbers]
        return [np.stack([np.full((3, 2, 1), one) for one in filled[:2]]), np.full((1, 1, 1, 1), filled[2])]


class NumberedImages:
    """The image at a position is its number; counts what was asked for."""

    def __init__(self, bad: Sequence[int] = ()) -> None:
        self.asked: list[int] = []
        self._bad = bad

    def image(self, position: int) -> Pixels:
        self.asked.append(position)
        if position in self._bad:
            raise OSError(f"position {position} is on fire")
        return np.full((4, 4, 1), position, np.uint8)


def schedule(*, rank: int = 0, world: int = 1, shares: tuple[Share, ...] = ()) -> Schedule:
    lanes = Lanes.cut(12, 4, rank=rank, world=world)
    return Schedule(shard_samples=SIZES, seed=SEED, block=8, lanes=lanes, shares=shares)


def loader(**options: Any) -> LaneLoader:
    world = {name: options.pop(name) for name in ("rank", "world", "shares") if name in options}
    images = options.pop("images", None) or NumberedImages()
    return LaneLoader(images, KeyedRecipe(), schedule(**world), **options)


def same(one: LaneBatch, other: LaneBatch) -> bool:
    return (
        (one.step, one.epoch) == (other.step, other.epoch)
        and np.array_equal(one.positions, other.positions)
        and all(np.array_equal(one.groups[name], other.groups[name]) for name in ("views", "local"))
    )


def test_a_batch_is_what_order_and_keys_say() -> None:
    batch = loader().batch(5)
    assert (batch.step, batch.epoch) == (5, 2)
    assert np.array_equal(batch.positions, schedule().epoch(2).positions(1, range(4)))
    assert batch.groups["views"].shape == (4, 2, 3, 3, 2, 1)
    assert batch.groups["local"].shape == (4, 1, 3, 1, 1, 1)
    for lane, positions in enumerate(batch.positions.tolist()):
        for sample, position in enumerate(positions):
            expected = [(position + int(rng.key(SEED, "views", 2, position, view)) % 251) % 256 for view in range(3)]
            for view in (0, 1):
                assert (batch.groups["views"][lane, view, sample] == expected[view]).all()
            assert batch.groups["local"][lane, 0, sample] == expected[2]


@pytest.mark.parametrize("ahead", [0, 1, 2, 50])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_stream_is_its_batches_however_it_is_made(ahead: int, threads: int) -> None:
    made = list(loader(ahead=ahead, threads=threads).stream(2, 9))
    assert [batch.step for batch in made] == list(range(2, 9))
    assert all(same(batch, loader().batch(batch.step)) for batch in made)


@settings(max_examples=15)
@given(
    threads=st.integers(1, 4),
    ahead=st.integers(0, 5),
    first=st.integers(0, 9),
    world=st.integers(1, 4),
    weights=st.none() | st.tuples(st.sampled_from([0.5, 1.0, 2.5]), st.sampled_from([0.5, 3.0])),
)
def test_a_stream_begun_anywhere_by_anyone_goes_on_as_the_whole(
    threads: int, ahead: int, first: int, world: int, weights: tuple[float, float] | None
) -> None:
    shares = tuple(Share(shards=2, weight=weight) for weight in weights or ())
    whole = list(loader(shares=shares).stream(0, 10))
    workers = [loader(rank=rank, world=world, threads=threads, ahead=ahead, shares=shares) for rank in range(world)]
    streams = [worker.stream(first, 10) for worker in workers]
    for expected, *parts in zip(whole[first:], *streams, strict=True):
        assert {part.step for part in parts} == {expected.step}
        for name in ("positions", "draws"):
            assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(expected, name))
        for name, pixels in expected.groups.items():
            assert np.array_equal(np.concatenate([part.groups[name] for part in parts]), pixels)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_workers_make_the_lanes_of_one(world: int) -> None:
    whole = loader().batch(3)
    parts = [loader(rank=rank, world=world).batch(3) for rank in range(world)]
    assert np.array_equal(np.concatenate([part.positions for part in parts]), whole.positions)
    for name, pixels in whole.groups.items():
        assert np.array_equal(np.concatenate([part.groups[name] for part in parts]), pixels)


def test_views_of_a_sample_differ_between_epochs() -> None:
    seen: dict[int, set[bytes]] = {}
    for batch in loader().stream(0, 2 * schedule().steps_per_epoch):
        for lane, positions in enumerate(batch.positions.tolist()):
            for sample, position in enumerate(positions):
                seen.setdefault(position, set()).add(batch.groups["views"][lane, :, sample].tobytes())
    assert sum(len(views) == 2 for views in seen.values()) >= 15


def test_a_sample_shown_again_in_an_epoch_has_other_views() -> None:
    thrice = loader(shares=(Share(shards=4, weight=3.0),))
    seen: dict[int, list[bytes]] = {}
    for batch in thrice.stream(0, 7):
        assert batch.epoch == 0
        for lane, positions in enumerate(batch.positions.tolist()):
            for sample, position in enumerate(positions):
                seen.setdefault(position, []).append(batch.groups["views"][lane, :, sample].tobytes())
    shown = [len(views) for views in seen.values()]
    assert (sorted(seen), sum(shown), max(shown)) == (list(range(29)), 84, 3)
    assert sum(len(set(views)) < len(views) for views in seen.values()) <= 1  # keys are cut to a byte: 251² pairs


def test_what_will_be_read_is_prepared_by_its_position() -> None:
    told, shown, steps, all_told = list[list[int]](), list[list[int]](), 7, threading.Event()

    def prepare(positions: Pixels) -> None:
        told.append(positions.ravel().tolist())
        if len(told) == steps:
            all_told.set()

    thrice = loader(shares=(Share(shards=4, weight=3.0),), prepare=prepare)
    for batch in thrice.stream(0, steps):
        assert all_told.wait(60)  # a stream that ends has no more to be fetched
        shown.append(batch.positions.ravel().tolist())
    assert told == shown


def test_a_sample_is_decoded_once_for_all_views() -> None:
    images = NumberedImages()
    batch = loader(images=images, ahead=0).batch(0)
    assert sorted(images.asked) == sorted(batch.positions.ravel().tolist())


def test_an_empty_stream_ends() -> None:
    assert list(loader().stream(4, 4)) == []


def test_a_failure_reaches_the_caller_and_the_threads_end() -> None:
    failing = int(loader().batch(1).positions[0, 0])
    stream = loader(images=NumberedImages([failing]), threads=2).stream(0, 8)
    assert next(stream).step == 0
    with pytest.raises(OSError, match=f"position {failing} is on fire"):
        next(stream)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


class SlowImages(NumberedImages):
    """Images that take a while."""

    def image(self, position: int) -> Pixels:
        time.sleep(0.01)
        return super().image(position)


def test_a_stream_that_is_left_drops_its_work_and_ends_its_threads() -> None:
    images = SlowImages()
    stream = loader(images=images, threads=2, ahead=20).stream(0, 100)
    next(stream)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    assert len(images.asked) < 10 * 12


@pytest.mark.usefixtures("untouched_generators")
def test_no_generator_is_touched() -> None:
    loader().batch(0)
