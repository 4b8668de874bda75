"""Heartbeats: every second a worker tells the driver what it is at, and hears whether it is to stop.

The channel is a Ray actor on the driver's node that needs no CPU, no port and no shared file, and ends with the driver.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, cast

from pipelines.attempt_policy import Activity, WorkerSign

if TYPE_CHECKING:
    from ssl_core.train.context import Doing

_EVERY_SECONDS = 1.0
_CALL_SECONDS = 10.0
_LAST_STEPS = 20

Answer = Literal["go", "stop", "leave"]
"""To a beat: go on, stop after this step, or end at once, since a later attempt has taken over."""

Kind = Literal["code", "user", "diverged", "resumable", "lost"]
"""Why a worker ended early: an error in code, one that the user can mend, a loss that is not finite, a stop that can be
continued, a peer that went away."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """What a worker says of itself."""

    attempt: int
    rank: int
    node: str
    pid: int
    step: int
    doing: Activity
    step_seconds: float | None
    placement_group: Any  # Ray's reservation for the attempt: who removes it ends all its workers


@dataclass(frozen=True, kw_only=True)
class LastWords:
    """Why a worker's code ended with an exception, in plain values: not every exception survives pickling."""

    attempt: int
    rank: int
    kind: Kind
    said: str  # of an error in code: its traceback


@dataclass(frozen=True, kw_only=True)
class News:
    """What the driver hears."""

    signs: tuple[WorkerSign, ...] = ()
    last_words: tuple[LastWords, ...] = ()
    placement_group: Any = None


@dataclass(kw_only=True)
class _Heard:
    beat: Beat
    at: float
    new_at: float


class Board:
    """Where beats are posted and the driver's wish is read; the actor's body.

    It forgets everything when its process dies and is started again: the driver repeats its wish, workers their beats.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._attempt = 0
        self._stop = False
        self._heard: dict[int, _Heard] = {}
        self._last_words: dict[int, LastWords] = {}

    def beat(self, beat: Beat) -> Answer:
        """Take a worker's beat, unless it is of an earlier attempt."""
        if beat.attempt < self._attempt:
            return "leave"
        self._begin(beat.attempt)
        now, before = self._clock(), self._heard.get(beat.rank)
        same = before is not None and (before.beat.step, before.beat.doing) == (beat.step, beat.doing)
        self._heard[beat.rank] = _Heard(beat=beat, at=now, new_at=before.new_at if before and same else now)
        return "stop" if self._stop else "go"

    def say(self, words: LastWords) -> None:
        """Take a worker's last words."""
        if words.attempt >= self._attempt:
            self._begin(words.attempt)
            self._last_words[words.rank] = words

    def news(self, attempt: int, *, stop: bool) -> News:
        """For the driver: all that is known of the workers of `attempt`, which are to stop or not."""
        self._begin(attempt)
        self._stop = stop
        now = self._clock()
        signs = tuple(_sign(heard, now) for _, heard in sorted(self._heard.items()))
        group = next((heard.beat.placement_group for heard in self._heard.values()), None)
        return News(signs=signs, last_words=tuple(self._last_words.values()), placement_group=group)

    def _begin(self, attempt: int) -> None:
        if attempt > self._attempt:
            self._attempt, self._stop = attempt, False
            self._heard, self._last_words = {}, {}


def _sign(heard: _Heard, now: float) -> WorkerSign:
    beat = heard.beat
    return WorkerSign(
        rank=beat.rank,
        node=beat.node,
        pid=beat.pid,
        step=beat.step,
        doing=beat.doing,
        step_seconds=beat.step_seconds,
        silent_seconds=now - heard.at,
        still_seconds=now - heard.new_at,
    )


class DriversBoard:
    """The board as the driver reads it: what cannot be read just now is as it was."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self._last: tuple[int, News] = (0, News())

    @classmethod
    def start(cls) -> "DriversBoard":
        """Start the actor on this node."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(Board)
        return cls(actor.options(scheduling_strategy=here).remote())

    def news(self, attempt: int, *, stop: bool) -> News:
        """As `Board.news`."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        with suppress(GetTimeoutError, RayActorError):
            news = cast(Any, ray).get(self.actor.news.remote(attempt, stop=stop), timeout=_CALL_SECONDS)
            self._last = attempt, news
        return self._last[1] if self._last[0] == attempt else News()


class Heart:
    """A worker's side: a thread that posts a beat every second.

    Attributes:
        asked_to_stop: whether the answer to the last beat said so.
    """

    def __init__(
        self,
        post: Callable[[Beat], Answer],
        *,
        attempt: int,
        rank: int,
        node: str,
        placement_group: Any = None,
        leave: Callable[[], None] = lambda: os._exit(1),
        every_seconds: float = _EVERY_SECONDS,
    ) -> None:
        """Begin at no step.

        Args:
            post: takes a beat and gives the answer; where it raises, that beat is missed.
            attempt: of the run.
            rank: of the worker.
            node: Ray's id of it.
            placement_group: see `Beat`.
            leave: ends this process at once.
            every_seconds: between beats.
        """
        self.asked_to_stop = False
        self._post, self._leave, self._every = post, leave, every_seconds
        self._attempt, self._rank, self._node, self._placement_group = attempt, rank, node, placement_group
        self._doing: Activity = "starting"
        self._step, self._since = 0, time.monotonic()
        self._step_seconds: deque[float] = deque(maxlen=_LAST_STEPS)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def close(self) -> None:
        """Say that this worker is done, and stop beating."""
        self._closed.set()
        self._thread.join(_CALL_SECONDS)  # its beat may be on its way, and would be the last word
        self._doing = "done"
        with suppress(Exception):
            self.beat()

    def at(self, step: int, doing: "Doing") -> None:
        """Note what this worker begins, after `step` steps."""
        now = time.monotonic()
        if self._doing == "stepping" and step > self._step:
            self._step_seconds.append(now - self._since)
        self._step, self._doing, self._since = step, doing, now

    def beat(self) -> None:
        """Post one beat, and do as the answer says."""
        seconds = self._step_seconds.copy()
        answer = self._post(
            Beat(
                attempt=self._attempt,
                rank=self._rank,
                node=self._node,
                pid=os.getpid(),
                step=self._step,
                doing=self._doing,
                step_seconds=median(seconds) if seconds else None,
                placement_group=self._placement_group,
            )
        )
        if answer == "leave":
            self._leave()
        self.asked_to_stop = answer == "stop"

    def _run(self) -> None:
        while True:
            with suppress(Exception):  # the next beat may come through; if none does, the driver sees it
                self.beat()
            if self._closed.wait(self._every):
                return


def heart_of_this_worker(board: Any, *, attempt: int, rank: int) -> Heart:
    """The heart of a Ray Train worker that posts to the actor `board`."""
    import ray
    from ray.util import get_current_placement_group

    def post(beat: Beat) -> Answer:
        return cast(Any, ray).get(board.beat.remote(beat), timeout=_CALL_SECONDS)

    node = ray.get_runtime_context().get_node_id()
    return Heart(post, attempt=attempt, rank=rank, node=node, placement_group=get_current_placement_group())


def say_last_words(board: Any, words: LastWords) -> None:
    """Post a worker's last words, and wait until they have arrived, if they can."""
    import ray
    from ray.exceptions import RayError

    with suppress(RayError):
        cast(Any, ray).get(board.say.remote(words), timeout=_CALL_SECONDS)
