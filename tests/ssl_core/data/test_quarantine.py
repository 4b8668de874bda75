"""Bad positions are listed once, counted over workers, bounded, and survive a checkpoint."""

import json

import pytest

from ssl_core.data.quarantine import Quarantine
from ssl_core.errors import Resumable, UserError


@pytest.mark.parametrize(
    ("samples", "max_bad", "limit"),
    [
        (50_000, None, 50),
        (500, None, 1),
        (10, 0.5, 5),
        (10, 1.0, 10),
        (10, 0.0, 0),
        (10, 0, 0),
        (10, 1, 1),
        (10, 7, 7),
    ],
)
def test_the_limit_is_a_share_or_a_count(samples: int, max_bad: float | int | None, limit: int) -> None:
    assert Quarantine(samples, max_bad=max_bad).limit == limit


@pytest.mark.parametrize("max_bad", [-1, -0.1, 1.5])
def test_other_limits_are_refused(max_bad: float) -> None:
    with pytest.raises(UserError, match=r"data\.max_bad"):
        Quarantine(10, max_bad=max_bad)


def test_distinct_positions_count_and_one_too_many_stops() -> None:
    quarantine = Quarantine(100, max_bad=2)
    for position in (7, 7, 3, 7):
        quarantine.add(position, f"reason {position}")
    assert 7 in quarantine
    assert 8 not in quarantine
    assert quarantine.count == 2
    quarantine.check()
    quarantine.add(8, "x")
    with pytest.raises(Resumable, match=r"data\.max_bad = 2 of 100 .*position 3 \(reason 3\)"):
        quarantine.check()


def test_a_checkpoint_brings_it_back() -> None:
    quarantine = Quarantine(100, max_bad=3)
    quarantine.add(7, "a")
    quarantine.add(9, "b")
    other = Quarantine(100, max_bad=3)
    other.restore(json.loads(json.dumps(quarantine.snapshot())))
    assert other.snapshot() == {7: "a", 9: "b"}
    other.add(9, "again")
    assert (other.count, other.num_found) == (2, 0)
    assert other.snapshot()[9] == "b"
    other.add(11, "c")
    other.restore({7: "a", 11: "c"})  # as after a checkpoint that joined what all workers found
    assert (other.count, other.num_found) == (2, 0)


def test_what_all_workers_know_counts_once() -> None:
    """Two workers were given the same two positions; each then finds one."""
    workers = [Quarantine(100, max_bad=4), Quarantine(100, max_bad=4)]
    for position, worker in enumerate(workers):
        worker.restore({50: "a", 51: "b"})
        worker.add(position, "new")
    found = sum(worker.num_found for worker in workers)
    assert not workers[0].exceeded(found)
    assert workers[0].exceeded(found + 1)


def test_a_stop_that_others_caused_is_said_too() -> None:
    with pytest.raises(Resumable, match="on other workers"):
        Quarantine(100).stop_if(True)
    Quarantine(100).stop_if(False)


def test_what_workers_found_is_merged_and_counts_once() -> None:
    """Both found 7; meanwhile the loader of one finds 8, which is neither forgotten nor known to the other."""
    workers = [Quarantine(100, max_bad=2), Quarantine(100, max_bad=2)]
    workers[0].add(7, "a")
    workers[1].add(7, "a")
    workers[1].add(9, "b")
    assert workers[0].exceeded(sum(worker.num_found for worker in workers))
    everything = workers[0].snapshot() | workers[1].snapshot()
    workers[1].add(8, "c")
    assert [worker.merge(everything) for worker in workers] == [{7: "a", 9: "b"}] * 2
    assert [worker.num_found for worker in workers] == [0, 1]
    assert [worker.count for worker in workers] == [2, 3]
    assert [worker.total(1) for worker in workers] == [3, 3]
    assert not workers[0].exceeded(0)
    assert workers[0].merge(workers[1].snapshot()) == {8: "c"}
