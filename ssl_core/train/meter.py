"""How fast a run goes: images per second, and the share of its time that it waits for data."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from ssl_core.train.profile import span
from ssl_core.types import LaneBatch


class Meter:
    """Images per second and the share of time spent waiting for data, over half a `window` of steps or more.

    Results are read late, the last ones of a run at once: a shorter span would say when they were read, not how fast
    they came.
    """

    def __init__(self, global_batch: int, *, window: int) -> None:
        self._global_batch, self._shortest = global_batch, max(1, window // 2)
        self._start = time.monotonic()
        self._steps, self._waited = 0, 0.0
        self._marks = deque([_Mark(seconds=self._start, steps=0, waited=0.0)])
        self._first_done = self._start

    def waiting(self, batches: Iterator[LaneBatch]) -> Iterator[LaneBatch]:
        """The batches, with the wait for each one counted."""
        while True:
            before = time.monotonic()
            with span("data"):
                batch = next(batches, None)
            if batch is None:
                return
            self._waited += time.monotonic() - before
            yield batch

    def step_done(self) -> None:
        self._steps += 1
        if self._steps == 1:
            self._first_done = time.monotonic()

    def rates(self) -> dict[str, float]:
        """Since the last call that is long enough ago."""
        now = _Mark(seconds=time.monotonic(), steps=self._steps, waited=self._waited)
        while len(self._marks) > 1 and now.steps - self._marks[1].steps >= self._shortest:
            self._marks.popleft()
        since = self._marks[0]
        self._marks.append(now)
        seconds = max(now.seconds - since.seconds, 1e-9)
        return {
            "images_per_second": (now.steps - since.steps) * self._global_batch / seconds,
            "data_wait": (now.waited - since.waited) / seconds,
        }

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def overall(self) -> float:
        """Images per second of the attempt; its first step (warm-up, compilation) is left out where there are more."""
        if self._steps > 1:
            return (self._steps - 1) * self._global_batch / max(time.monotonic() - self._first_done, 1e-9)
        return self._steps * self._global_batch / max(self.seconds, 1e-9)


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """Where a run stood at some moment."""

    seconds: float
    steps: int
    waited: float
