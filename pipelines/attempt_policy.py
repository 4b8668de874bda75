"""What the driver decides about attempts, as plain arithmetic: retry or not, how many workers, who hangs.

Nothing here asks Ray or the clock, so that every decision is tested without either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:  # it imports torch, and a process of Ray's own imports this
    from ssl_core.train.context import Doing

_LEAST_HANG_SECONDS, _HANG_STEPS = 60.0, 10
_MOST_BACK_OFF_SECONDS = 60.0
_NODES_NAMED = 8

Activity: TypeAlias = "Doing | Literal['done']"
"""What a worker is at; one that is done beats no more."""


class FailureBudget:
    """Failures in a row that another attempt may follow; a newer checkpoint than at the last one begins a new row."""

    def __init__(self, max_failures: int) -> None:
        self.max_failures = max_failures
        self.failures = 0
        self._saved = -1

    def spend(self, saved_step: int) -> bool:
        """Count a failure with the newest checkpoint after `saved_step` steps; whether another attempt may follow."""
        if saved_step > self._saved:
            self.failures = 0
        self._saved = saved_step
        self.failures += 1
        return self.failures <= self.max_failures

    @property
    def back_off_seconds(self) -> float:
        """How long to wait before the next attempt: 1 s, doubled by each failure of the row, at most 60 s."""
        return min(_MOST_BACK_OFF_SECONDS, 2.0 ** min(self.failures - 1, 10))


def choose_workers(room: int, *, least: int, most: int) -> int | None:
    """As many workers as there is room for, at most `most`; None where there is room for less than `least`."""
    return min(room, most) if room >= least else None


def is_faster(lanes: int, *, workers: int, possible: int) -> bool:
    """Whether `possible` workers instead of `workers` lower the number of lanes of the one that has most."""
    return -(-lanes // possible) < -(-lanes // workers)


@dataclass(frozen=True, kw_only=True)
class WorkerSign:
    """What is known of a worker: its last beat, and how old its news is."""

    rank: int
    node: str
    pid: int
    step: int
    doing: Activity
    step_seconds: float | None  # median of its last steps
    silent_seconds: float  # since its last beat
    still_seconds: float  # since it said something new


def whereabouts(signs: Sequence[WorkerSign]) -> str:
    """How they are spread: `3 workers on 2 nodes (2 on 1c0ffee1, 1 on 2badcafe)`; of many nodes the first few."""
    on: dict[str, int] = {}
    for sign in signs:
        on[sign.node] = on.get(sign.node, 0) + 1
    named = [f"{count} on {node[:8]}" for node, count in on.items()][:_NODES_NAMED]
    more = ["…"] if len(on) > _NODES_NAMED else []
    plural = "s" if len(on) > 1 else ""
    return f"{len(signs)} workers on {len(on)} node{plural} ({', '.join(named + more)})"


@dataclass(frozen=True, kw_only=True)
class Hang:
    """A worker that does not go on."""

    sign: WorkerSign
    seconds: float
    silent: bool  # no beat came: the process or its node is frozen; otherwise it lives, and its step does not end

    def __str__(self) -> str:
        """One line."""
        sign = self.sign
        what = f"gave no sign for {self.seconds:.0f} s" if self.silent else f"hung for {self.seconds:.0f} s"
        return f"worker {sign.rank} (node {sign.node[:8]}, pid {sign.pid}) {what} in step {sign.step + 1:,}"


def hang_limit(signs: Sequence[WorkerSign], timeout: float | None) -> float:
    """Seconds without progress that are a hang: `timeout`, or the larger of 60 s and ten steps."""
    slowest = max((sign.step_seconds or 0.0 for sign in signs), default=0.0)
    return max(_LEAST_HANG_SECONDS, _HANG_STEPS * slowest) if timeout is None else timeout


def find_hang(signs: Sequence[WorkerSign], timeout: float | None) -> Hang | None:
    """The worker that hangs, if any.

    A worker is frozen where its beats stop, whatever it was at. It hangs where it beats but stays in one step for too
    long; of the workers that then wait for each other, the one that is furthest behind is named.
    """
    limit = hang_limit(signs, timeout)
    frozen = [sign for sign in signs if sign.doing != "done" and sign.silent_seconds > limit]
    if frozen:
        sign = max(frozen, key=lambda sign: sign.silent_seconds)
        return Hang(sign=sign, seconds=sign.silent_seconds, silent=True)
    stuck = [sign for sign in signs if sign.doing == "stepping" and sign.still_seconds > limit]
    if stuck and not any(sign.doing in ("saving", "probing") for sign in signs):  # they may be waiting for that one
        sign = min(stuck, key=lambda sign: (sign.step, -sign.still_seconds))
        return Hang(sign=sign, seconds=sign.still_seconds, silent=False)
    return None
