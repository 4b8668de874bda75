"""The worker loop: resume, step, record, checkpoint, stop. The platform is the `RunContext`, not Ray or MLflow."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ssl_core.data.loader import LaneLoader
from ssl_core.data.quarantine import Quarantine
from ssl_core.errors import Resumable
from ssl_core.train.checkpoint import Checkpoint, newest_readable, save_checkpoint
from ssl_core.train.context import RunContext
from ssl_core.train.health import CollapseWatch, measure
from ssl_core.train.profile import profiled, span
from ssl_core.train.records import Record, audit_line
from ssl_core.train.step import PendingStep, TrainStep
from ssl_core.types import LaneBatch

Monitor = Callable[[nn.Module], Mapping[str, float]]
"""Looks at the encoder now and then and gives numbers for the metrics; every worker calls it alike, nothing changes."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What the loop does besides stepping; none of it changes the weights."""

    total_steps: int
    steps_per_epoch: int
    global_batch: int
    checkpoint_every_steps: int | None = None
    checkpoint_every_seconds: float | None = 600.0
    keep_checkpoints: int = 2
    log_every: int = 10
    health_every: int = 50
    health_samples: int = 128
    monitor_every: int | None = None
    profile: bool = False
    audit: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class LoopResult:
    """How an attempt ended."""

    steps: int
    finished: bool
    seconds: float
    images_per_second: float
    quarantined: int


def train(
    step: TrainStep,
    loader: LaneLoader,
    quarantine: Quarantine,
    config: LoopConfig,
    context: RunContext,
    *,
    monitor: Monitor | None = None,
    complaints: Sequence[str] = (),
) -> LoopResult:
    """Run from the newest whole checkpoint to the last step, or until asked to stop.

    Every worker calls it alike. The last completed step is saved on a stop, on too many unreadable samples, and at the
    end. A step's result is read once the next step is under way, so that the device never waits for the host.
    `complaints` are lines for the run's events.
    """
    first, damaged = _resume(step, quarantine, context)
    quarantine.stop_if(first < config.total_steps and quarantine.exceeded(0))  # as it was when the run stopped
    meter = _Meter(config.global_batch, window=config.log_every)
    saver = _Saver(step, quarantine, config, context)
    records = _Records(config, context, first)
    for complaint in (*complaints, *damaged):
        records.event(first, complaint)
    results = _Results(step, quarantine, config, context, records, meter, first)
    watch = CollapseWatch()
    done = first
    lead = context.collectives.rank == 0
    stream = loader.stream(first, config.total_steps)
    batches = meter.waiting(stream)
    if config.profile and lead:
        batches = profiled(batches, context.folder)
    try:
        for batch in batches:
            pending = step(
                batch,
                signals=(
                    float(lead and context.should_stop()),
                    float(lead and saver.due_by_clock(batch.step + 2)),  # heard when the next step is under way
                    float(quarantine.num_found),
                ),
            )
            done = batch.step + 1
            looks: dict[str, float] = {}
            if done % config.health_every == 0 or done == config.total_steps:
                looks = measure(step.features(batch, samples=config.health_samples))
                if complaint := watch.complaint(looks):
                    records.event(done, complaint)
            if monitor and config.monitor_every and done % config.monitor_every == 0:
                looks |= monitor(step.encoder)
            verdict = results.of_the_step_before(batch, pending, looks)
            if verdict.any() or saver.due_by_step(done):
                verdict = results.of_this_step(verdict)  # what is saved must be known to be good
                if unreadable := saver.save(done):
                    records.event(done, _about(unreadable))
            quarantine.stop_if(verdict.too_many and quarantine.exceeded(0))  # once all know what each had found
            if verdict.stop:
                break
    finally:
        stream.close()
        records.close()
    return LoopResult(
        steps=done,
        finished=done == config.total_steps,
        seconds=meter.seconds,
        images_per_second=meter.overall(),
        quarantined=quarantine.count,
    )


def _resume(step: TrainStep, quarantine: Quarantine, context: RunContext) -> tuple[int, list[str]]:
    """Load the newest whole checkpoint, if any: the steps that are done, and what is wrong with newer ones."""
    assert isinstance(context.checkpoints, Path), "buckets come with the store of checkpoints"
    checkpoint, complaints = newest_readable(context.checkpoints)
    found = context.collectives.gather_objects(0 if checkpoint is None else checkpoint.step)
    if len(set(found)) > 1:
        raise Resumable(
            f"workers found checkpoints of different steps {found} in {context.folder}: "
            "all nodes must share that folder; the same command tries again"
        )
    if checkpoint is None:
        return 0, complaints
    step.module.load_state_dict(checkpoint.model)
    step.load_optimizer_state(checkpoint.optimizer)
    quarantine.restore(checkpoint.state["quarantine"])
    return checkpoint.step, complaints


def _about(unreadable: Mapping[int, str]) -> str:
    """A line for the events; the checkpoint has them all."""
    position, reason = min(unreadable.items())
    more = f" and {len(unreadable) - 1:,} more" if len(unreadable) > 1 else ""
    return f"quarantined, as it does not decode: the sample at position {position} ({reason}){more}"


class _Saver:
    """Decides when a checkpoint is due, and writes it on rank 0."""

    def __init__(self, step: TrainStep, quarantine: Quarantine, config: LoopConfig, context: RunContext) -> None:
        self._step, self._quarantine, self._config, self._context = step, quarantine, config, context
        self._last = time.monotonic()

    def due_by_step(self, done: int) -> bool:
        """Whether the state after `done` steps is to be kept; every worker knows."""
        every = self._config.checkpoint_every_steps
        return done == self._config.total_steps or (every is not None and done % every == 0)

    def due_by_clock(self, done: int) -> bool:
        """The same by rank 0's clock; an epoch's end within a minute of the last checkpoint is not kept."""
        config, age = self._config, time.monotonic() - self._last
        if config.checkpoint_every_steps is not None:
            return False
        every = config.checkpoint_every_seconds or 600.0
        return age >= every or (done % config.steps_per_epoch == 0 and age >= min(60.0, every))

    def save(self, done: int) -> dict[int, str]:
        """Write one checkpoint; what the workers quarantined since the last one, which all know now."""
        found = self._context.collectives.gather_objects(self._quarantine.snapshot())
        everything = {position: reason for part in found for position, reason in part.items()}
        if self._context.collectives.rank == 0:
            listed = {str(position): reason for position, reason in sorted(everything.items())}
            state = {"identity": dict(self._config.identity), "quarantine": listed}
            checkpoint = Checkpoint(
                step=done, model=self._step.module.state_dict(), optimizer=self._step.optimizer_state(), state=state
            )
            assert isinstance(self._context.checkpoints, Path), "buckets come with the store of checkpoints"
            save_checkpoint(self._context.checkpoints, checkpoint, keep=self._config.keep_checkpoints)
        self._last = time.monotonic()
        return self._quarantine.merge(everything)


@dataclass(frozen=True, kw_only=True)
class _Verdict:
    """What the workers decided together."""

    stop: bool = False
    save: bool = False
    too_many: bool = False

    def any(self) -> bool:
        """Whether the state is to be saved."""
        return self.stop or self.save or self.too_many


class _Results:
    """Reads what steps said, each when the next one is under way, and writes it down."""

    def __init__(
        self,
        step: TrainStep,
        quarantine: Quarantine,
        config: LoopConfig,
        context: RunContext,
        records: "_Records",
        meter: "_Meter",
        first: int,
    ) -> None:
        self._step, self._quarantine, self._config, self._context = step, quarantine, config, context
        self._records, self._meter, self._first = records, meter, first
        self._ahead: tuple[LaneBatch, PendingStep, dict[str, float]] | None = None

    def of_the_step_before(self, batch: LaneBatch, pending: PendingStep, looks: dict[str, float]) -> _Verdict:
        """Take a step that is under way, and read the one before it, if that is not read yet."""
        verdict = self._read(last=False, stopping=False)
        self._ahead = (batch, pending, looks)
        return verdict

    def of_this_step(self, verdict: _Verdict) -> _Verdict:
        """Wait for the step that is under way; what was decided before it holds as well."""
        last = self._read(last=True, stopping=verdict.stop)
        return _Verdict(stop=verdict.stop or last.stop, too_many=verdict.too_many or last.too_many)

    def _read(self, *, last: bool, stopping: bool) -> _Verdict:
        """Wait for the step's result; of a run that stops, the last step is written down, whichever it is."""
        if self._ahead is None:
            return _Verdict()
        (batch, pending, looks), self._ahead = self._ahead, None
        result = pending.result()
        self._meter.step_done()
        if self._config.audit:
            self._records.audit(audit_line(batch, result.loss, self._context.collectives))
        done = batch.step + 1
        stop, save, num_found = result.signals
        ends = done in (self._first + 1, self._config.total_steps)
        if (last and (stopping or stop)) or looks or ends or done % self._config.log_every == 0:
            values = {
                "loss": result.loss,
                "learning_rate": self._step.rate(batch.step),
                "gradient_norm": result.gradient_norm,
                "quarantined": self._quarantine.total(int(num_found)),
                **looks,
            }
            epoch = done / self._config.steps_per_epoch
            self._records.metrics({"step": done, "epoch": epoch, **values, **self._meter.rates()})
        return _Verdict(stop=stop > 0, save=save > 0, too_many=self._quarantine.exceeded(int(num_found)))


class _Records:
    """Rank 0's parts of the append-only records; nothing on other ranks."""

    def __init__(self, config: LoopConfig, context: RunContext, first: int) -> None:
        # a line of the metrics says what holds after `step` steps, one of the audit what step `step` did
        first_steps = {"metrics": first + 1, "events": first, **({"audit": first} if config.audit else {})}
        self._parts = (
            {
                kind: Record(context.folder, kind, attempt=context.attempt, first_step=n)
                for kind, n in first_steps.items()
            }
            if context.collectives.rank == 0
            else {}
        )

    def audit(self, line: dict[str, Any]) -> None:
        self._append("audit", line)

    def metrics(self, line: dict[str, Any]) -> None:
        self._append("metrics", {**line, "time": time.time()})

    def event(self, step: int, text: str) -> None:
        self._append("events", {"step": step, "event": text})

    def _append(self, kind: str, line: dict[str, Any]) -> None:
        if kind in self._parts:
            self._parts[kind].append(line)

    def close(self) -> None:
        for record in self._parts.values():
            record.close()


class _Meter:
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
