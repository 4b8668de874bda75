"""What the driver wants of an attempt under way, from the workers' beats: go on, stop after a step, or end at once."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from pipelines.attempt_policy import Hang, WorkerSign, find_hang

STOP_PATIENCE_SECONDS = 18.0  # for a step to end, of the 30 s that a preempted machine has

Order = Literal["go", "stop", "end"]

MoveReason = Callable[[Sequence[WorkerSign]], str | None]
"""Why the attempt should make room for one with other workers, if it should."""


class Asked(Protocol):
    """Whether somebody asked the command to stop."""

    @property
    def seconds_since(self) -> float | None:
        """Seconds since then."""
        ...


class Supervisor:
    """Looks at one attempt every second.

    Attributes:
        hang: the worker that made it end the attempt.
        moving: why it stopped the attempt in favour of the next one.
    """

    def __init__(self, asked: Asked, *, hang_timeout: float | None, move_reason: MoveReason | None = None) -> None:
        self._asked, self._hang_timeout, self._move_reason = asked, hang_timeout, move_reason
        self._suspect: Hang | None = None
        self.hang: Hang | None = None
        self.moving: str | None = None
        self.signs: Sequence[WorkerSign] = ()
        self._began = False

    def look(self, signs: Sequence[WorkerSign]) -> Order:
        """Decide. A hang must be seen twice: after a stall of this machine, beats may be on their way."""
        self.signs, self._began = signs, self._began or bool(signs)
        suspect = find_hang(signs, self._hang_timeout)
        if suspect and self._suspect and suspect.sign.rank == self._suspect.sign.rank:
            self.hang = suspect
        self._suspect = suspect
        if self.hang:
            return "end"
        if (waited := self._asked.seconds_since) is not None:
            return "end" if self._in_vain(waited) else "stop"
        if self.moving is None and self._move_reason:
            self.moving = self._move_reason(signs)
        return "stop" if self.moving else "go"

    def __str__(self) -> str:
        """Why the workers stop after this step."""
        return "once more to leave at once" if self._asked.seconds_since is not None else str(self.moving)

    def _in_vain(self, waited: float) -> bool:
        """No worker has been there yet, or a step takes too long; a save that has begun, or is done, is waited for.

        A worker hears the wish in one step, all hear it in the next, and the one after is under way by then.
        """
        busy = any(sign.doing in ("saving", "probing", "done") for sign in self.signs)
        three_steps = 3 * max((sign.step_seconds or 0.0 for sign in self.signs), default=0.0)
        return not self._began or (waited > max(STOP_PATIENCE_SECONDS, three_steps) and not busy)
