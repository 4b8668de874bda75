"""The worker loop: resume, step, record, checkpoint, stop. The platform is the `RunContext`, not Ray or MLflow."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ssl_core.collectives import Collectives
from ssl_core.data.loader import LaneLoader
from ssl_core.data.quarantine import Quarantine
from ssl_core.errors import Resumable, UserError
from ssl_core.train.checkpoint import Checkpoint, CheckpointStore
from ssl_core.train.context import RunContext
from ssl_core.train.health import CollapseWatch, measure
from ssl_core.train.identity import differences
from ssl_core.train.meter import Meter
from ssl_core.train.profile import profiled
from ssl_core.train.records import Record, audit_line
from ssl_core.train.saver import SaveConfig, Saver
from ssl_core.train.step import PendingStep, TrainStep
from ssl_core.types import LaneBatch

Monitor = Callable[[nn.Module], Mapping[str, float]]
"""Looks at the encoder now and then and gives numbers for the metrics; every worker calls it alike, nothing changes."""


@contextmanager
def writable(folder: Path) -> Generator[None]:
    """Within: what cannot be written, on a disk that is full or away, stops the run so that it can be continued."""
    try:
        yield
    except OSError as error:
        raise Resumable(f"cannot write to the run's folder {folder} ({error}): the same command tries again") from error


class NonFiniteLoss(Resumable):
    """The loss or its gradient is not finite; nothing of the step was committed."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What the loop does besides stepping; none of it changes the weights.

    Attributes:
        total_steps: the run's.
        steps_per_epoch: the run's.
        global_batch: samples a step.
        save: when checkpoints are written and which are kept.
        log_every: steps between lines of the metrics.
        health_every: steps between looks at the features.
        health_samples: how many of the batch's these are of.
        monitor_every: steps between calls of the monitor, which sees the last one besides.
        max_skipped: steps whose loss is not finite that are left out before the run stops (with a `TrainStep` that
            was told to skip them).
        profile: write where a step's time goes.
        audit: write what each step saw.
        identity: what the weights depend on: a checkpoint with another one is refused.
    """

    total_steps: int
    steps_per_epoch: int
    global_batch: int
    save: SaveConfig = field(default_factory=SaveConfig)
    log_every: int = 10
    health_every: int = 50
    health_samples: int = 128
    monitor_every: int | None = None
    max_skipped: int = 0
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
    collectives, lead = context.collectives, context.collectives.rank == 0
    context.at(0, "starting")
    store = CheckpointStore(context.checkpoints, attempt=context.attempt)
    if lead:
        with writable(context.folder):
            store.claim()
    collectives.barrier()
    start = _resume(step, quarantine, config, store, collectives)
    first = start.step
    quarantine.stop_if(first < config.total_steps and quarantine.exceeded(0))  # as it was when the run stopped
    meter = Meter(config.global_batch, window=config.log_every)
    with writable(context.folder):
        records = _Records(config, context, first)
    skipped = list(start.skipped)
    saver = Saver(
        store,
        config.save,
        quarantine,
        collectives,
        total_steps=config.total_steps,
        steps_per_epoch=config.steps_per_epoch,
        state=lambda done: _checkpoint(step, done, config, skipped),
        before=records.sync,
        say=records.event,
    )
    saver.resume(first, start.best)
    for complaint in (*complaints, *start.complaints):
        records.event(first, complaint)
    results = _Results(step, quarantine, config, context, records, meter, first, skipped, saver)
    watch = CollapseWatch()
    done = first
    stream = loader.stream(first, config.total_steps)
    batches = meter.waiting(stream)
    if config.profile and lead:
        batches = profiled(batches, context.folder)
    try:
        for batch in batches:
            context.at(batch.step, "stepping" if batch.step > first + 1 else "starting")  # compiling is starting
            pending = step(
                batch,
                signals=(
                    float(lead and (context.should_stop() or saver.gives_up())),
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
            best = False
            if monitor and config.monitor_every and (done % config.monitor_every == 0 or done == config.total_steps):
                context.at(done, "probing")
                seen = monitor(step.encoder)
                best = saver.is_best(done, seen)
                looks |= seen
            verdict = results.of_the_step_before(batch, pending, looks)
            if verdict.any() or best or saver.due_by_step(done):
                verdict = results.of_this_step(verdict)  # what is saved must be known to be good
                context.at(done, "saving")
                if unreadable := saver.save(done):
                    records.event(done, _about(unreadable))
            context.at(done, "stepping")
            saver.look()
            if verdict.stop or verdict.too_many or done == config.total_steps:
                context.at(done, "saving")
                saver.finish(done, context.should_stop)
            quarantine.stop_if(verdict.too_many and quarantine.exceeded(0))  # once all know what each had found
            if verdict.stop:
                break
    finally:
        stream.close()
        saver.close()
        records.close()
    return LoopResult(
        steps=done,
        finished=done == config.total_steps,
        seconds=meter.seconds,
        images_per_second=meter.overall(),
        quarantined=quarantine.count,
    )


@dataclass(frozen=True, kw_only=True)
class _Start:
    """Where an attempt begins."""

    step: int = 0
    best: Mapping[str, Any] | None = None
    skipped: Sequence[int] = ()
    complaints: Sequence[str] = ()


def _resume(
    step: TrainStep, quarantine: Quarantine, config: LoopConfig, store: CheckpointStore, collectives: Collectives
) -> _Start:
    """Load the newest whole checkpoint, if any."""
    checkpoint, complaints = store.newest_readable()
    found = collectives.gather_objects(0 if checkpoint is None else checkpoint.step)
    if len(set(found)) > 1:
        raise Resumable(
            f"workers found checkpoints of different steps {found} at {store.folder}: "
            "all nodes must share that place; the same command tries again"
        )
    if checkpoint is None:
        return _Start(complaints=complaints)
    changed = differences(checkpoint.state["identity"], config.identity)
    if changed:
        raise UserError(
            f"the checkpoints at {store.folder} were made with another configuration: {'; '.join(changed[:3])}; use "
            "another name or the same values"
        )
    step.module.load_state_dict(checkpoint.model)
    step.load_optimizer_state(checkpoint.optimizer)
    quarantine.restore(checkpoint.state["quarantine"])
    return _Start(
        step=checkpoint.step,
        best=checkpoint.state["best"],
        skipped=checkpoint.state["skipped"],
        complaints=complaints,
    )


def _checkpoint(step: TrainStep, done: int, config: LoopConfig, skipped: Sequence[int]) -> Checkpoint:
    """The state after `done` steps, as it is now."""
    state = {"identity": dict(config.identity), "skipped": list(skipped)}
    return Checkpoint(step=done, model=step.module.state_dict(), optimizer=step.optimizer_state(), state=state)


def _about(unreadable: Mapping[int, str]) -> str:
    """A line for the events; the checkpoint has them all."""
    position, reason = min(unreadable.items())
    more = f" and {len(unreadable) - 1:,} more" if len(unreadable) > 1 else ""
    return f"quarantined, as it does not decode: the sample at position {position} ({reason}){more}"


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
        meter: "Meter",
        first: int,
        skipped: list[int],
        saver: Saver,
    ) -> None:
        self._step, self._quarantine, self._config, self._context = step, quarantine, config, context
        self._records, self._meter, self._first = records, meter, first
        self._skipped, self._saver = skipped, saver
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
        if not result.finite:
            self._skip(batch.step, pending.trouble(result))
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

    def _skip(self, step: int, trouble: str) -> None:
        """Bear that nothing of a step was committed, where that is allowed; raises NonFiniteLoss."""
        if len(self._skipped) >= self._config.max_skipped:
            self._saver.close()
            good = self._context.collectives.gather_objects(self._saver.last_good)[0]  # rank 0 knows; all come here
            raise NonFiniteLoss(
                f"{trouble}; nothing of the step was kept, the last good checkpoint is "
                f"{f'step {good}' if good else 'the beginning'}: lower optim.base_rate or use train.precision=fp32, "
                "under a new name, or leave such steps out with train.max_skipped"
            )
        self._skipped.append(step)
        left = self._config.max_skipped - len(self._skipped)
        self._records.event(step, f"warning: step {step} is left out: {trouble} {left} more may be (train.max_skipped)")


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

    def sync(self) -> None:
        for record in self._parts.values():
            record.sync()

    def close(self) -> None:
        for record in self._parts.values():
            record.close()
