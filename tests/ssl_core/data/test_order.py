"""The order: every sample once, whatever the cut; any step reached directly; permutations that permute and mix."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.pretrain_config import DataConfig
from ssl_core import rng
from ssl_core.data.order import EpochOrder, permute, steps_per_epoch
from ssl_core.errors import UserError
from ssl_core.lanes import Lanes

Ints = np.ndarray[Any, np.dtype[np.int64]]


@st.composite
def cuts(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `EpochOrder` with at least one whole global batch."""
    sizes = draw(st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 7, 20, 64]), min_size=1, max_size=8))
    num_lanes, lane_size = draw(st.integers(1, 9)), draw(st.integers(1, 8))
    short = num_lanes * lane_size - sum(sizes)
    if short > 0:
        sizes.insert(draw(st.integers(0, len(sizes))), short + draw(st.integers(0, 5)))
    return {
        "shard_samples": np.asarray(sizes, dtype=np.int64),
        "seed": draw(st.integers(0, 2**31)),
        "num_lanes": num_lanes,
        "lane_size": lane_size,
        "block": draw(st.sampled_from([1, 2, 5, 30, 100, 10**9])),
    }


def whole_epoch(cut: dict[str, Any], epoch: int = 0) -> Ints:
    """Positions of an epoch: int64 [steps, C, b]."""
    order = EpochOrder(**cut, epoch=epoch)
    return np.stack([order.positions(step, range(cut["num_lanes"])) for step in range(order.steps)])


@settings(max_examples=40)
@given(cut=cuts(), epoch=st.integers(0, 1000))
def test_every_sample_once_but_for_a_tail_of_less_than_a_global_batch(cut: dict[str, Any], epoch: int) -> None:
    seen = whole_epoch(cut, epoch)
    total, batch = int(cut["shard_samples"].sum()), cut["num_lanes"] * cut["lane_size"]
    assert seen.shape == (total // batch, cut["num_lanes"], cut["lane_size"])
    assert seen.min() >= 0
    assert seen.max() < total
    assert len(np.unique(seen)) == seen.size > total - batch


@pytest.mark.parametrize(
    "sizes",
    [[1] * 3000, [0] * 40 + [1] * 99 + [0] * 40, [50_000], [1, 50_000, 1, 0], [0, 500, 0, 0, 1]],
    ids=["ones", "mostly empty", "a giant", "a giant and crumbs", "empty ends"],
)
@pytest.mark.parametrize("num_lanes", [1, 3, 64])
@pytest.mark.parametrize("block", [1, 8192])
def test_every_sample_once_whatever_the_shards(sizes: list[int], num_lanes: int, block: int) -> None:
    lane_size = sum(sizes) // num_lanes
    order = EpochOrder(np.asarray(sizes), seed=1, epoch=2, num_lanes=num_lanes, lane_size=lane_size, block=block)
    seen = order.positions(0, range(num_lanes))
    assert order.steps == 1
    assert seen.min() >= 0
    assert seen.max() < sum(sizes)
    assert len(np.unique(seen)) == seen.size > sum(sizes) - num_lanes


@settings(max_examples=40)
@given(cut=cuts(), data=st.data())
def test_any_number_of_workers_sees_the_same(cut: dict[str, Any], data: st.DataObject) -> None:
    whole = whole_epoch(cut)
    world = data.draw(st.integers(1, cut["num_lanes"]))
    step = data.draw(st.integers(0, len(whole) - 1))
    workers = [Lanes(count=cut["num_lanes"], size=cut["lane_size"], rank=rank, world=world) for rank in range(world)]
    parts = [EpochOrder(**cut, epoch=0).positions(step, worker.owned) for worker in workers]
    assert np.array_equal(np.concatenate(parts), whole[step])


def parts_read_before_the_next(shard_of: Ints) -> list[int]:
    """Lengths of the pieces of a sequence whose shards occur in no other piece."""
    last = {shard: place for place, shard in enumerate(shard_of.tolist())}
    ends: list[int] = []
    open_until = 0
    for place, shard in enumerate(shard_of.tolist()):
        open_until = max(open_until, last[shard])
        if place == open_until:
            ends.append(place + 1)
    return [end - start for start, end in pairwise([0, *ends])]


@settings(max_examples=40)
@given(cut=cuts())
def test_a_block_is_whole_shards_and_is_read_before_the_next(cut: dict[str, Any]) -> None:
    sizes: Ints = cut["shard_samples"]
    lanes: dict[str, Any] = {**cut, "num_lanes": 1, "lane_size": int(sizes.sum())}
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[whole_epoch(lanes).ravel()]
    lengths = parts_read_before_the_next(shard_of)
    assert max(lengths) < 2 * cut["block"] + int(sizes.max())
    parts = np.split(shard_of, np.cumsum(lengths)[:-1])
    most_shards = max(len(set(part.tolist())) for part in parts)
    assert most_shards <= EpochOrder(**lanes, epoch=0).shards_per_block()


@pytest.mark.parametrize(
    ("block", "lengths"),
    [(1, [100] * 8), (100, [100] * 8), (101, [200] * 4), (250, [300, 500]), (401, [800]), (10**6, [800])],
)
def test_blocks_are_as_many_whole_shards_as_it_takes(block: int, lengths: list[int]) -> None:
    cut = {"shard_samples": np.full(8, 100), "seed": 2, "num_lanes": 1, "lane_size": 800, "block": block}
    assert parts_read_before_the_next(whole_epoch(cut).ravel() // 100) == lengths


def test_epochs_differ_in_order_and_in_tail() -> None:
    cut = {"shard_samples": np.asarray([40, 30, 33]), "seed": 5, "num_lanes": 4, "lane_size": 4, "block": 35}
    epochs = [whole_epoch(cut, epoch) for epoch in range(6)]
    tails = [frozenset(range(103)) - set(epoch.ravel().tolist()) for epoch in epochs]
    assert all(len(tail) == 103 - 96 for tail in tails)
    assert len(set(tails)) == 6
    assert len({epoch.tobytes() for epoch in epochs}) == 6


def test_the_tail_takes_every_sample_alike() -> None:
    cut = {"shard_samples": np.full(8, 13), "seed": 5, "num_lanes": 4, "lane_size": 4, "block": 13}
    seen = np.sum([np.bincount(whole_epoch(cut, epoch).ravel(), minlength=104) for epoch in range(150)], axis=0)
    left_out = 150 - seen
    assert left_out.mean() == 150 * 8 / 104
    assert 1 <= left_out.min() <= left_out.max() <= 27  # mean 11.5, deviation 3.3


@settings(max_examples=20)
@given(cut=cuts(), data=st.data())
def test_a_step_is_reached_from_anywhere(cut: dict[str, Any], data: st.DataObject) -> None:
    whole = whole_epoch(cut, 3)
    order = EpochOrder(**cut, epoch=3)
    for step in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=6)):
        assert np.array_equal(order.positions(step, range(cut["num_lanes"])), whole[step])


def test_seeds_differ() -> None:
    cut = {"shard_samples": np.asarray([40, 30]), "num_lanes": 2, "lane_size": 5, "block": 20}
    assert not np.array_equal(whole_epoch({**cut, "seed": 0}), whole_epoch({**cut, "seed": 1}))


def test_lanes_read_their_own_part_from_front_to_back() -> None:
    cut = {"shard_samples": np.asarray([12] * 8), "seed": 0, "num_lanes": 4, "lane_size": 3, "block": 12}
    seen = whole_epoch(cut)
    shards = [set((seen[:, lane] // 12).ravel().tolist()) for lane in range(4)]
    assert all(len(lane) == 2 for lane in shards)
    assert set.union(*shards) == set(range(8))


def test_sequences_are_pinned() -> None:
    cut = {"shard_samples": np.asarray([5, 0, 7, 4]), "seed": 3, "num_lanes": 2, "lane_size": 3}
    assert whole_epoch({**cut, "block": 6}, 1).tolist() == [[[8, 5, 6], [7, 14, 4]], [[10, 11, 9], [12, 0, 1]]]
    assert whole_epoch({**cut, "block": 1}, 0).tolist() == [[[14, 12, 15], [6, 9, 10]], [[13, 7, 5], [11, 8, 2]]]


def permuted(size: int, key: int, index: Ints | None = None) -> Ints:
    index = np.arange(size) if index is None else index
    return permute(index, np.full(len(index), size), np.full(len(index), key, dtype=np.int64))


@settings(max_examples=20)
@given(key=st.integers(-(2**63), 2**63 - 1))
def test_permute_is_a_bijection_of_small_sizes(key: int) -> None:
    sizes = np.arange(1, 71)
    size = np.repeat(sizes, sizes)
    index = np.concatenate([np.arange(one) for one in sizes])
    image = permute(index, size, np.full(len(index), key))
    for one in sizes.tolist():
        assert sorted(image[size == one].tolist()) == list(range(one))


@pytest.mark.parametrize("size", [4095, 4096, 4097, 65537, 100_000])
def test_permute_is_a_bijection_of_large_sizes(size: int) -> None:
    assert np.array_equal(np.sort(permuted(size, 17)), np.arange(size))


@pytest.mark.parametrize("size", [2**31 + 1, 2**40 - 1, 2**40 + 1, 10**12])
def test_permute_maps_a_sample_of_a_giant_size_one_to_one(size: int) -> None:
    index = np.unique(rng.random_bits(rng.key(0, "test"), 20_000) % size)
    image = permuted(size, 3, index)
    assert len(np.unique(image)) == len(index)
    assert image.min() >= 0
    assert image.max() < size
    assert abs(np.corrcoef(index, image)[0, 1]) < 0.03
    assert abs(image.mean() / size - 0.5) < 0.01


def test_permute_takes_each_element_by_its_own_size_and_key() -> None:
    sizes, keys = np.asarray([5, 9, 5, 70]), np.asarray([1, 2, 3, 4])
    index = np.asarray([4, 8, 0, 69])
    alone = [permuted(size, key)[i] for i, size, key in zip(index, sizes.tolist(), keys.tolist(), strict=True)]
    assert permute(index, sizes, keys).tolist() == alone


def test_permute_is_pinned() -> None:
    assert permuted(10, int(rng.key(0, "a"))).tolist() == [8, 0, 3, 2, 9, 7, 5, 4, 1, 6]


def test_permute_sends_every_element_everywhere_alike() -> None:
    size, trials = 100, 3000
    keys = np.repeat(rng.key(0, "test", np.arange(trials)), size)
    image = permute(np.tile(np.arange(size), trials), np.full(len(keys), size), keys).reshape(trials, size)
    counts = np.stack([np.bincount(image[:, element], minlength=size) for element in range(size)])
    expected = trials / size
    assert 9300 < ((counts - expected) ** 2 / expected).sum() < 10_400
    neighbours = (np.abs(np.diff(image, axis=1)) == 1).mean()
    assert neighbours == pytest.approx(2 / size, rel=0.1)


def test_a_block_is_mixed() -> None:
    cut = {"shard_samples": np.asarray([1000] * 4), "seed": 0, "num_lanes": 1, "lane_size": 4000, "block": 4000}
    sequence = whole_epoch(cut).ravel()
    assert abs(np.corrcoef(np.arange(4000), sequence)[0, 1]) < 0.05
    quarters = np.stack([np.bincount(part // 1000, minlength=4) for part in np.split(sequence, 4)])
    assert quarters.min() > 190


def test_the_default_block_mixes_nearly_like_a_uniform_shuffle() -> None:
    """1,000 shards of 1,000 samples, batches of 256 in 16 lanes; `benchmarks/order.py` prints more of it."""
    lanes = Lanes.cut(256, None)
    order = EpochOrder(np.full(1000, 1000), seed=0, epoch=0, num_lanes=16, lane_size=16, block=DataConfig().block)
    shards = np.stack([order.positions(step, lanes.owned) for step in range(0, order.steps, 40)]) // 1000
    distance = np.abs(np.diff(shards, axis=2)).mean() / 1000
    assert distance > 0.8 / 3  # a third for a uniform shuffle
    equal = shards.reshape(len(shards), 1, -1) == shards.reshape(len(shards), -1, 1)
    pairs = (equal.sum() / len(shards) - 256) / (256 * 255)
    assert pairs < 0.01  # 0.001 for a uniform shuffle, 0.06 for blocks of one shard


def test_a_giant_data_set_costs_no_more_than_its_shards() -> None:
    cut: dict[str, Any] = {
        "shard_samples": np.full(20_000, 10**8),
        "seed": 0,
        "num_lanes": 64,
        "lane_size": 64,
        "block": 10**9,
    }
    order = EpochOrder(**cut, epoch=3)
    positions = np.stack([order.positions(step, range(64)) for step in (0, order.steps // 2, order.steps - 1)])
    assert len(np.unique(positions)) == positions.size
    assert positions.max() < 2 * 10**12


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(UserError, match=r"train.global_batch=64 .* 63 samples"):
        steps_per_epoch(63, 64)
    with pytest.raises(UserError, match="0 samples"):
        EpochOrder(np.asarray([], dtype=np.int64), seed=0, epoch=0, num_lanes=1, lane_size=1, block=1)


@pytest.mark.parametrize("block", [0, -1])
def test_a_block_of_no_samples_is_refused(block: int) -> None:
    with pytest.raises(UserError, match=rf"data.block={block}"):
        EpochOrder(np.asarray([5, 5]), seed=0, epoch=0, num_lanes=1, lane_size=1, block=block)
