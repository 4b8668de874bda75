"""The driver's decisions: a budget that refills with progress, the number of workers, and who hangs."""

from dataclasses import replace

import pytest

from pipelines.attempt_policy import (
    Activity,
    FailureBudget,
    WorkerSign,
    choose_workers,
    find_hang,
    hang_limit,
    is_faster,
    whereabouts,
)
from ssl_core.train.context import Doing


def sign(
    rank: int = 0,
    *,
    step: int = 5,
    doing: Activity = "stepping",
    silent: float = 0.0,
    still: float = 0.0,
    step_seconds: float | None = None,
) -> WorkerSign:
    return WorkerSign(
        rank=rank,
        node=f"{rank}" * 40,
        pid=100 + rank,
        step=step,
        doing=doing,
        step_seconds=step_seconds,
        silent_seconds=silent,
        still_seconds=max(still, silent),
    )


def test_a_budget_is_spent_by_failures_without_progress() -> None:
    budget = FailureBudget(2)
    assert [budget.spend(saved) for saved in (0, 0, 0)] == [True, True, False]
    assert not FailureBudget(0).spend(0)


def test_a_newer_checkpoint_than_at_the_last_failure_refills_it() -> None:
    budget = FailureBudget(2)
    assert [budget.spend(saved) for saved in (0, 0, 10, 10, 20, 30, 30, 30)] == [True] * 7 + [False]


def test_back_off_doubles_and_begins_anew_with_progress() -> None:
    budget = FailureBudget(20)
    waits: list[float] = []
    for saved in (*[0] * 9, 1, 1):
        budget.spend(saved)
        waits.append(budget.back_off_seconds)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 1, 2]


@pytest.mark.parametrize(
    ("room", "chosen"), [(0, None), (1, None), (2, 2), (3, 3), (4, 4), (9, 4)], ids=lambda value: str(value)
)
def test_as_many_workers_as_there_is_room_for_within_bounds(room: int, chosen: int | None) -> None:
    assert choose_workers(room, least=2, most=4) == chosen


@pytest.mark.parametrize(
    ("lanes", "workers", "possible", "faster"),
    [(8, 4, 5, False), (8, 4, 7, False), (8, 4, 8, True), (8, 3, 4, True), (6, 1, 2, True), (4, 2, 3, False)],
)
def test_more_workers_are_worth_it_where_the_busiest_gets_fewer_lanes(
    lanes: int, workers: int, possible: int, faster: bool
) -> None:
    assert is_faster(lanes, workers=workers, possible=possible) == faster


def test_where_the_workers_are() -> None:
    three = [sign(0), sign(1), replace(sign(2), node="0" * 40)]
    assert whereabouts(three) == "3 workers on 2 nodes (2 on 00000000, 1 on 11111111)"
    assert whereabouts([sign(0), replace(sign(1), node="0" * 40)]) == "2 workers on 1 node (2 on 00000000)"
    many = [replace(sign(number), node=f"{number:08d}") for number in range(20)]
    assert whereabouts(many).startswith("20 workers on 20 nodes (1 on 00000000, 1 on 00000001, ")
    assert whereabouts(many).endswith(", 1 on 00000007, …)")


def test_the_limit_is_a_minute_or_ten_steps_or_what_was_set() -> None:
    assert hang_limit([], None) == 60
    assert hang_limit([sign(), sign(1, step_seconds=2.0)], None) == 60
    assert hang_limit([sign(step_seconds=7.0), sign(1, step_seconds=9.0)], None) == 90
    assert hang_limit([sign(step_seconds=7.0)], 5) == 5


def test_a_worker_whose_step_does_not_end_hangs() -> None:
    assert find_hang([sign(still=60), sign(1, still=60)], None) is None
    hang = find_hang([sign(step=6, still=62), sign(1, step=5, still=61)], None)
    assert str(hang) == "worker 1 (node 11111111, pid 101) hung for 61 s in step 6"  # 0 waits for it


def test_who_is_done_is_silent() -> None:
    assert find_hang([sign(doing="done", silent=1e5), sign(1)], None) is None


@pytest.mark.parametrize("doing", ["starting", "probing", "saving"])
def test_only_steps_have_a_limit_but_beats_come_always(doing: Doing) -> None:
    assert find_hang([sign(doing=doing, still=1e5)], None) is None
    hang = find_hang([sign(doing=doing, silent=61), sign(1, still=70)], None)
    assert str(hang) == "worker 0 (node 00000000, pid 100) gave no sign for 61 s in step 6"


def test_who_waits_for_a_worker_that_saves_does_not_hang() -> None:
    waiting = sign(1, doing="stepping", still=100)
    assert find_hang([sign(0, doing="stepping"), waiting], 60) is not None
    assert find_hang([sign(0, doing="saving"), waiting], 60) is None
