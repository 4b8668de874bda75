"""A submitted job from the outside: its log as it grows, how it ended, and whether the same command would go on.

The log is asked for as a whole and what is new of it shown: no connection has to last, so a port-forward may drop and
come back. A long log is asked for less often, about 200 kB a second at most. Ray's own way, a web socket, ends without
a word where a proxy or a forward drops it.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.command_line import EXIT_FAILED, EXIT_OK, EXIT_RESUMABLE
from cluster.jobs_api import TERMINAL, JobsApi, NotFound, Unreachable

PATIENCE_SECONDS = 600.0  # without an answer; a head that is replaced takes minutes
_PAUSE_SECONDS = 1.0
_BYTES_PER_SECOND = 200_000
_UNKNOWN = "does not exist"  # Ray's words for a job that it does not know; a proxy without its server has others
_NODE_WAS_LOST = (  # Ray's words for a job whose driver has gone with its node
    "JOB_SUPERVISOR_ACTOR_DIED",
    "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE",
    "JOB_SUPERVISOR_ACTOR_START_FAILURE",
)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended: its exit status as a shell would say it, and whether the same command continues it."""

    status: int
    resumable: bool
    why: str


def follow(
    api: JobsApi,
    job: str,
    show: Callable[[str], None],
    *,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Ended:
    """Show a job's log until it ends.

    Args:
        api: of the cluster.
        job: its id.
        show: takes pieces of the log.
        patience_seconds: how long the API may be away.

    Raises:
        Unreachable: it was away for longer; the job may go on.
    """
    log = _Log(api, job, show)
    ended: Ended | None = None
    last_answer = time.monotonic()
    while True:
        try:
            details = api.details(job)
            if details["status"] in TERMINAL:
                ended = how_it_ended(details)
            log.show_new(now=ended is not None, may_be_lost=details.get("error_type") in _NODE_WAS_LOST)
            if ended:
                return ended
            last_answer = time.monotonic()
        except (NotFound, Unreachable) as error:
            if _UNKNOWN in str(error):
                why = "the cluster no longer knows it: its head was replaced"
                return Ended(status=EXIT_FAILED, resumable=True, why=why)
            if time.monotonic() - last_answer > patience_seconds:
                if ended:  # the end of its log is all that is missing
                    return ended
                raise
        time.sleep(_PAUSE_SECONDS)


def how_it_ended(details: dict[str, Any]) -> Ended:
    """What Ray's details of a job that has ended mean.

    A driver that somebody stopped, that stopped by itself with status 75, that a signal killed or that went with its
    node can be continued by the same command; but one that was stopped was stopped on purpose.
    """
    status, code, error = details["status"], details.get("driver_exit_code"), details.get("error_type") or ""
    if status == "SUCCEEDED":
        return Ended(status=EXIT_OK, resumable=False, why="done")
    if status == "STOPPED":
        return Ended(status=EXIT_RESUMABLE, resumable=False, why="stopped as asked: the same command continues it")
    if error in _NODE_WAS_LOST:
        return Ended(status=EXIT_FAILED, resumable=True, why="its driver's node was lost")
    if code is None:
        said = (details.get("message") or "no message").strip().splitlines() or ["no message"]
        return Ended(status=EXIT_FAILED, resumable=False, why=f"it did not start: {said[-1][:300]}")
    if code < 0:
        return Ended(status=128 - code, resumable=True, why=f"its driver was killed by {_signal_name(-code)}")
    why = "the same command continues it" if code == EXIT_RESUMABLE else "failed"
    return Ended(status=code, resumable=code == EXIT_RESUMABLE, why=f"{why} (exit status {code})")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class _Log:
    """How much of a log was shown."""

    def __init__(self, api: JobsApi, job: str, show: Callable[[str], None]) -> None:
        self._api, self._job, self._show = api, job, show
        self._shown = 0  # characters
        self._next = 0.0

    def show_new(self, *, now: bool, may_be_lost: bool) -> None:
        """Show what is new, if it is time to look again, or `now`; a log that was on a lost node is left."""
        if not now and time.monotonic() < self._next:
            return
        try:
            text = self._api.logs(self._job)
        except Unreachable:
            if may_be_lost:
                return
            raise
        self._next = time.monotonic() + len(text) / _BYTES_PER_SECOND
        if len(text) > self._shown:
            self._show(text[self._shown :])
            self._shown = len(text)
