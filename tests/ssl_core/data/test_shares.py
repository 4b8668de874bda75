"""Shares: an epoch has exactly a set's share of its samples, and they take turns."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_core.data.order import EpochOrder
from ssl_core.data.shares import Share, epoch_pieces, samples_an_epoch
from ssl_core.lanes import Lanes

Ints = np.ndarray[Any, np.dtype[np.int64]]
WEIGHTS = (0.001, 0.1, 0.3, 0.5, 0.99, 1.0, 1.5, 2.0, 3.25)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[list[int]], list[float]]:
    """Samples of the shards of one to four data sets, and the sets' weights."""
    shards = st.lists(st.sampled_from([0, 1, 1, 2, 7, 30]), min_size=1, max_size=6)
    sets = draw(st.lists(shards.filter(any), min_size=1, max_size=4))
    return sets, [draw(st.sampled_from(WEIGHTS)) for _ in sets]


def joined(sets: Sequence[Sequence[int]], weights: Sequence[float]) -> tuple[Ints, tuple[Share, ...]]:
    sizes = np.asarray([samples for shards in sets for samples in shards], dtype=np.int64)
    return sizes, tuple(Share(shards=len(s), weight=w) for s, w in zip(sets, weights, strict=True))


def whole_epoch(sizes: Ints, shares: Sequence[Share], *, epoch: int, seed: int = 0, lanes: int = 1) -> Ints:
    """The draws of an epoch, but for its tail: int64 [steps, C, b]."""
    lane_size = samples_an_epoch(sizes, shares) if lanes == 1 else 2
    order = EpochOrder(sizes, seed=seed, epoch=epoch, num_lanes=lanes, lane_size=lane_size, block=20, shares=shares)
    return np.stack([order.draws(step, range(lanes)) for step in range(order.steps)])


def parts_of(values: Ints, sets: Sequence[Sequence[int]]) -> list[Ints]:
    return np.split(values, np.cumsum([sum(shards) for shards in sets])[:-1])


@settings(max_examples=40)
@given(mixture=mixtures(), seed=st.integers(0, 99), first=st.integers(0, 50), epochs=st.integers(1, 7))
def test_every_sample_has_its_share_of_an_epoch_and_of_any_number_of_them(
    mixture: tuple[list[list[int]], list[float]], seed: int, first: int, epochs: int
) -> None:
    sets, weights = mixture
    sizes, shares = joined(sets, weights)
    total = int(sizes.sum())
    counts: list[Ints] = []
    for epoch in range(first, first + epochs):
        draws = whole_epoch(sizes, shares, epoch=epoch, seed=seed).ravel()
        assert len(np.unique(draws)) == len(draws)
        assert draws.min() >= 0
        shown = np.bincount(draws % total, minlength=total)
        numbers = np.bincount(draws % total, weights=draws // total, minlength=total)
        assert np.array_equal(numbers, shown * (shown - 1) / 2)  # a sample's draws count up from its position
        counts.append(shown)
    for part, shards, weight in zip(parts_of(np.stack(counts, 1), sets), sets, weights, strict=True):
        size = sum(shards)
        share = max(1, round(Fraction(str(weight)) * size))
        assert (part.sum(0) == share).all()
        shown = part.sum(1)
        assert {shown.min(), shown.max()} == {share * epochs // size, -(-share * epochs // size)}


@settings(max_examples=30)
@given(mixture=mixtures(), epoch=st.integers(0, 50))
def test_an_epoch_reads_whole_shards_but_for_two_a_set(
    mixture: tuple[list[list[int]], list[float]], epoch: int
) -> None:
    sets, weights = mixture
    sizes, shares = joined(sets, weights)
    pieces = epoch_pieces(sizes, shares, seed=0, epoch=epoch)
    shard = np.searchsorted(np.cumsum(sizes), pieces.first % sizes.sum(), side="right")
    assert (pieces.samples[pieces.samples > 0] < sizes[shard[pieces.samples > 0]]).sum() <= 2 * len(sets)


def test_a_half_is_the_other_half_in_the_next_epoch() -> None:
    sizes, shares = joined([[10] * 8, [5]], [0.5, 1])
    halves = [set((whole_epoch(sizes, shares, epoch=epoch).ravel()).tolist()) - {*range(80, 85)} for epoch in (0, 1)]
    assert halves[0] | halves[1] == {*range(80)}
    assert len(halves[0]) == len(halves[1]) == 40
    other = whole_epoch(sizes, shares, epoch=0, seed=1).ravel()
    assert set(other.tolist()) - {*range(80, 85)} not in halves  # which half it is depends on the seed


def test_weights_of_one_are_the_plain_order() -> None:
    sizes, shares = joined([[10, 7], [20, 0, 3]], [1.0, 1.0])
    for epoch in range(3):
        plain, weighted = (whole_epoch(sizes, given, epoch=epoch, lanes=4) for given in ((), shares))
        assert np.array_equal(plain, weighted)


@settings(max_examples=30)
@given(mixture=mixtures(), epoch=st.integers(0, 9), data=st.data())
def test_any_number_of_workers_sees_the_same_at_any_step(
    mixture: tuple[list[list[int]], list[float]], epoch: int, data: st.DataObject
) -> None:
    sets, weights = mixture
    sizes, shares = joined([[40], *sets], [1.0, *weights])
    whole = whole_epoch(sizes, shares, epoch=epoch, lanes=5)
    step, world = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 5))
    order = EpochOrder(sizes, seed=0, epoch=epoch, num_lanes=5, lane_size=2, block=20, shares=shares)
    parts = [order.draws(step, Lanes(count=5, size=2, rank=rank, world=world).owned) for rank in range(world)]
    assert np.array_equal(np.concatenate(parts), whole[step])
    assert np.array_equal(order.positions(step, range(5)), whole[step] % sizes.sum())


@pytest.mark.parametrize(
    ("weight", "samples", "expected"),
    [
        (0.3, 10, 3),
        (0.35, 10, 4),
        (0.1, 1000, 100),
        (2.5, 3, 8),
        (1e-5, 10, 1),
        (1, 7, 7),
        (2, 7, 14),
        (1.5, 0, 0),
        (1 / 3, 9, 3),
    ],
)
def test_a_weight_is_taken_as_written(weight: float, samples: int, expected: int) -> None:
    assert Share(shards=1, weight=weight).samples_an_epoch(samples) == expected


def test_sequences_are_pinned() -> None:
    sizes, shares = joined([[3, 2], [4]], [1.5, 0.5])
    assert whole_epoch(sizes, shares, epoch=0, seed=3).ravel().tolist() == [1, 4, 10, 11, 3, 6, 0, 9, 2, 5]
    assert whole_epoch(sizes, shares, epoch=1, seed=3).ravel().tolist() == [8, 9, 13, 1, 4, 0, 7, 3, 12, 2]
