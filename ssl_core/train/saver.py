"""When a checkpoint is due, and how it gets to its store while steps go on.

The training thread copies the state (tens of milliseconds) and a thread of its own writes it, one checkpoint at a
time. A store that is full or away costs no step: the run goes on, says so, tries again, keeps the last good
checkpoint, and stops resumably when its patience is over.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any

from ssl_core.collectives import Collectives
from ssl_core.data.quarantine import Quarantine
from ssl_core.errors import Resumable
from ssl_core.train.checkpoint import Checkpoint, CheckpointStore, SupersededError

_WAIT_FOR_WRITER_SECONDS = 5.0  # a checkpoint that is due while the one before is being written waits so long
_TRY_AGAIN_SECONDS = 30.0
_STOP_SECONDS = 15.0  # for the last checkpoint of a run that stops, of the 30 that it has


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """When checkpoints are written and which are kept; changes no weights.

    Attributes:
        every_steps: steps between checkpoints; None: by the clock.
        every_seconds: seconds between checkpoints, and the end of an epoch.
        keep: the newest ones that are kept.
        best_by: the monitor's number by which the best one is kept besides; higher is better.
        patience_seconds: how long a store may refuse before the run stops.
    """

    every_steps: int | None = None
    every_seconds: float = 600.0
    keep: int = 2
    best_by: str | None = "knn_online"
    patience_seconds: float = 1800.0


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best step so far, by the monitor."""

    step: int
    score: float


class Saver:
    """Saves on rank 0 what all workers have; every worker calls it alike.

    Args:
        store: where checkpoints go.
        config: when, and which are kept.
        quarantine: what the workers found, gathered at each checkpoint.
        collectives: the workers.
        total_steps: the run's.
        steps_per_epoch: the run's.
        state: the checkpoint of the steps that are done, without the quarantine and the best step.
        before: called before a checkpoint is completed: what must be on the disk by then; raises OSError.
        say: is told, with the step, what a user should know.
    """

    def __init__(
        self,
        store: CheckpointStore,
        config: SaveConfig,
        quarantine: Quarantine,
        collectives: Collectives,
        *,
        total_steps: int,
        steps_per_epoch: int,
        state: Callable[[int], Checkpoint],
        before: Callable[[], None],
        say: Callable[[int, str], None],
    ) -> None:
        self._store, self._config, self._quarantine, self._collectives = store, config, quarantine, collectives
        self._total, self._per_epoch = total_steps, steps_per_epoch
        self._state, self._before, self._say = state, before, say
        self._last = time.monotonic()
        self._resumed_from = self.last_good = 0
        self._best: Best | None = None  # that was seen
        self._saved_best: Best | None = None  # the best of those that are in the store
        self._latest: Checkpoint | None = None
        self._writing: _Writing | None = None
        self._outage: _Outage | None = None
        self._superseded: SupersededError | None = None

    def resume(self, step: int, best: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint that says which step was the best."""
        self._resumed_from = self.last_good = step
        self._saved_best = None if best is None else Best(step=int(best["step"]), score=float(best["score"]))
        self._best = self._saved_best

    def due_by_step(self, done: int) -> bool:
        """Whether the state after `done` steps is to be kept; every worker knows."""
        every = self._config.every_steps
        return done == self._total or (every is not None and done % every == 0)

    def due_by_clock(self, done: int) -> bool:
        """The same by rank 0's clock; an epoch's end within a minute of the last checkpoint is not kept."""
        now = time.monotonic()
        if self._writing is not None:
            return False
        if self._outage is not None:
            return now >= self._outage.try_again
        if self._config.every_steps is not None:
            return False
        age, every = now - self._last, self._config.every_seconds
        return age >= every or (done % self._per_epoch == 0 and age >= min(60.0, every))

    def is_best(self, done: int, looks: Mapping[str, float]) -> bool:
        """Whether the monitor sees the best step so far; rank 0 says, since others may differ in the last bit."""
        score = looks.get(self._config.best_by) if self._config.best_by is not None else None
        if score is None:
            return False
        better = self._collectives.gather_objects(self._best is None or score > self._best.score)[0]
        if better:
            self._best = Best(step=done, score=score)
        return better

    def save(self, done: int) -> dict[int, str]:
        """Begin to write a checkpoint; what the workers quarantined since the last one, which all know now."""
        found = self._collectives.gather_objects(self._quarantine.snapshot())
        everything = {position: reason for part in found for position, reason in part.items()}
        if self._collectives.rank == 0:
            listed = {str(position): reason for position, reason in sorted(everything.items())}
            self._wait(0.0 if self._outage else _WAIT_FOR_WRITER_SECONDS)
            best = self._best if self._best and self._best.step == done else self._saved_best
            checkpoint = self._state(done)
            state = {**checkpoint.state, "quarantine": listed, "best": None if best is None else vars(best)}
            self._latest = replace(checkpoint, state=state).copied()
            if self._writing is None:
                self._begin(self._latest)
            elif not self._outage and done < self._total:
                self._say(done, f"step {done} is not saved: the checkpoint before it is still being written")
        self._last = time.monotonic()
        return self._quarantine.merge(everything)

    def look(self) -> None:
        """See whether what is being written is there; says what changed."""
        if self._writing is None or self._writing.thread.is_alive():
            return
        done, self._writing = self._writing, None
        if done.error is None:
            self.last_good, self._saved_best = done.step, done.best
            if self._latest is not None and self._latest.step == done.step:
                self._latest = None
            if self._outage is not None:
                self._say(done.step, f"checkpoints are written again: step {done.step} is saved")
            self._outage = None
        elif isinstance(done.error, SupersededError):
            self._superseded = done.error
        else:
            now, reason = time.monotonic(), " ".join(str(done.error).split()) or type(done.error).__name__
            if self._outage is None:
                good = f"the last good one is step {self.last_good}" if self.last_good else "there is none yet"
                what = f"the checkpoint of step {done.step} cannot be written ({reason})"
                self._say(done.step, f"warning: {what}: training goes on, {good}")
            since = now if self._outage is None else self._outage.since
            self._outage = _Outage(since=since, try_again=now + _TRY_AGAIN_SECONDS, reason=reason)

    def gives_up(self) -> bool:
        """Whether the run has to stop: its patience with the store is over, or a later attempt has the run."""
        outage = self._outage
        tired = outage is not None and time.monotonic() - outage.since >= self._config.patience_seconds
        return tired or self._superseded is not None

    def finish(self, done: int, should_stop: Callable[[], bool]) -> None:
        """Wait until the state after `done` steps, of which `save` was called, is in the store.

        Of a run that is whole, a store that refuses is tried until the patience is over or the run is asked to stop; of
        one that stops, once.

        Raises:
            Resumable: it is not there.
        """
        if self._collectives.rank != 0:
            return
        whole = done == self._total
        deadline = time.monotonic() + (self._config.patience_seconds if whole else _STOP_SECONDS)
        self._wait_until(deadline, should_stop if whole else None)
        while self.last_good != done:
            if self._superseded is not None:
                raise self._superseded
            if self._writing is None and self._latest is not None:
                self._begin(self._latest)
                self._wait_until(deadline, should_stop if whole else None)
            if self.last_good == done:
                return
            if not whole or self.gives_up() or should_stop():
                reason = self._outage.reason if self._outage else "it takes too long"
                raise Resumable(
                    f"the checkpoint of step {done} could not be written ({reason}), the last good one is step "
                    f"{self.last_good}: the same command continues from there"
                )
            self._pause(should_stop)

    def close(self) -> None:
        """Let what is being written become whole, for a while."""
        self._wait(_WAIT_FOR_WRITER_SECONDS)

    def _pause(self, should_stop: Callable[[], bool]) -> None:
        end = time.monotonic() + _TRY_AGAIN_SECONDS
        while time.monotonic() < end and not self.gives_up() and not should_stop():
            time.sleep(0.2)

    def _wait_until(self, deadline: float, should_stop: Callable[[], bool] | None) -> None:
        """For the writer; not longer than `_STOP_SECONDS` once asked to stop."""
        while self._writing is not None and time.monotonic() < deadline:
            if should_stop is not None and should_stop():
                deadline, should_stop = min(deadline, time.monotonic() + _STOP_SECONDS), None
            self._wait(0.2)

    def _wait(self, seconds: float) -> None:
        if self._writing is not None:
            self._writing.thread.join(seconds)
            self.look()

    def _begin(self, checkpoint: Checkpoint) -> None:
        best = checkpoint.state["best"]
        writing = _Writing(checkpoint.step, None if best is None else Best(**best))

        def write() -> None:
            try:
                self._before()
                self._store.save(
                    checkpoint,
                    keep=self._config.keep,
                    best=None if writing.best is None else writing.best.step,
                    resumed_from=self._resumed_from,
                )
            except Exception as error:  # noqa: BLE001 (whatever a store raises is looked at by the training thread)
                writing.error = error

        writing.thread = Thread(target=write, name="checkpoint-writer", daemon=True)
        self._writing = writing
        writing.thread.start()


class _Writing:
    """A checkpoint on its way."""

    thread: Thread

    def __init__(self, step: int, best: Best | None) -> None:
        self.step, self.best = step, best
        self.error: Exception | None = None


@dataclass(frozen=True, kw_only=True)
class _Outage:
    """Since when checkpoints cannot be written, when to try again, and why."""

    since: float
    try_again: float
    reason: str
