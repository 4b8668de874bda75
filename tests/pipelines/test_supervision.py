"""Orders to an attempt: a hang seen twice ends it, a signal stops it within its time, a move stops it."""

from collections.abc import Sequence
from dataclasses import replace

from pipelines.attempt_policy import Activity, WorkerSign
from pipelines.supervision import STOP_PATIENCE_SECONDS, Supervisor


class Asked:
    """A signal as old as the test says."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds_since = seconds


def sign(rank: int = 0, *, still: float = 0.0, doing: Activity = "stepping") -> WorkerSign:
    return WorkerSign(
        rank=rank,
        node="n",
        pid=1,
        step=3,
        doing=doing,
        step_seconds=None,
        silent_seconds=0.0,
        still_seconds=still,
    )


def test_a_hang_ends_the_attempt_once_it_was_seen_twice() -> None:
    supervisor = Supervisor(Asked(), hang_timeout=5)
    assert [supervisor.look([sign(still=still)]) for still in (4, 6, 0, 6, 7)] == ["go", "go", "go", "go", "end"]
    assert supervisor.hang is not None
    assert supervisor.hang.seconds == 7


def test_a_signal_stops_after_the_step_and_ends_what_takes_too_long() -> None:
    late = STOP_PATIENCE_SECONDS + 1
    assert Supervisor(Asked(1), hang_timeout=None).look([sign()]) == "stop"
    assert Supervisor(Asked(late), hang_timeout=None).look([sign()]) == "end"
    assert Supervisor(Asked(late), hang_timeout=None).look([sign(), sign(1, doing="saving")]) == "stop"
    assert Supervisor(Asked(late), hang_timeout=None).look([sign(doing="done")]) == "stop"
    assert Supervisor(Asked(1), hang_timeout=None).look([]) == "end"  # no worker is there yet
    slow = replace(sign(), step_seconds=late / 2)
    assert Supervisor(Asked(late), hang_timeout=None).look([slow]) == "stop"  # three steps have their time


def test_workers_that_are_not_heard_of_for_a_moment_are_still_there() -> None:
    asked = Asked()
    supervisor = Supervisor(asked, hang_timeout=None)
    assert supervisor.look([sign()]) == "go"
    asked.seconds_since = 1.0
    assert supervisor.look([]) == "stop"


def test_a_reason_to_move_stops_and_is_kept() -> None:
    reasons: list[str | None] = [None, "a node is being taken away", None]

    def move(signs: Sequence[WorkerSign]) -> str | None:
        return reasons.pop(0)

    supervisor = Supervisor(Asked(), hang_timeout=None, move_reason=move)
    assert [supervisor.look([sign()]) for _ in range(3)] == ["go", "stop", "stop"]
    assert str(supervisor) == supervisor.moving == "a node is being taken away"
