"""Lanes: any number of workers up to the number of lanes, and the default number of lanes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_core.errors import UserError
from ssl_core.lanes import Lanes, default_lane_count


@given(count=st.integers(1, 64), data=st.data())
def test_workers_own_every_lane_once_in_order_and_evenly(count: int, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, count))
    workers = [Lanes.cut(count * 3, count, rank=rank, world=world) for rank in range(world)]
    assert [lane for worker in workers for lane in worker.owned] == list(range(count))
    counts = [len(worker.owned) for worker in workers]
    assert min(counts) >= 1
    assert max(counts) - min(counts) <= 1
    for worker in workers:
        assert worker.counts == counts
        assert [worker.of(rank) for rank in range(world)] == [other.owned for other in workers]
        assert (worker.size, worker.global_batch) == (3, count * 3)
        assert worker.efficiency == pytest.approx(count / (world * -(-count // world)))


def test_lanes_need_not_divide_among_workers() -> None:
    lanes = [Lanes.cut(64, 8, rank=rank, world=3) for rank in range(3)]
    assert [list(one.owned) for one in lanes] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    assert lanes[0].efficiency == pytest.approx(8 / 9)


@given(st.integers(1, 1 << 17))
def test_default_is_the_largest_power_of_two_that_divides(batch: int) -> None:
    allowed = [2**i for i in range(20) if 2**i <= min(64, batch / 16) and batch % 2**i == 0]
    assert default_lane_count(batch) == max(allowed, default=1)


@pytest.mark.parametrize(
    ("batch", "count"),
    [(1, 1), (16, 1), (31, 1), (32, 2), (48, 2), (100, 4), (256, 16), (1024, 64), (4096, 64), (520, 8)],
)
def test_default_lane_counts(batch: int, count: int) -> None:
    assert default_lane_count(batch) == count
    assert Lanes.cut(batch, None).count == count


@pytest.mark.parametrize(
    ("batch", "count", "world", "says"),
    [
        (64, 7, 1, "data.lanes=7 does not divide train.global_batch=64"),
        (64, 0, 1, "data.lanes=0"),
        (64, -8, 1, "data.lanes=-8"),
        (8, 16, 1, "data.lanes=16"),
        (64, 8, 9, "between 1 and 8"),
        (64, 8, 0, "train.workers=0"),
        (0, None, 1, "train.global_batch=0"),
        (-64, None, 1, "train.global_batch=-64"),
        (-64, 8, 1, "train.global_batch=-64"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(batch: int, count: int | None, world: int, says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        Lanes.cut(batch, count, world=world)
    assert "\n" not in str(refused.value)
