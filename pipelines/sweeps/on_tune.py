"""The trials of a sweep on Ray Tune: who is next, how many at a time, and when one is stopped early.

Tune reserves nothing for the workers of a trial, which Ray Train asks for itself. So the number of trials at a time is
counted from what the cluster holds, and a trial's own actor takes no CPU of it. Tune's files are scratch: what is known
of a sweep is in the records of its trials, so a sweep whose driver was killed is continued without unpickling anything.
"""

import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search import Searcher

from pipelines.stop_signals import StopSignals
from pipelines.sweeps.sweep import EarlyStopping
from pipelines.sweeps.trial_run import TrialRun
from pipelines.sweeps.trials import CURVE, TrialRecord, Trials
from ssl_core.errors import UserError

SCRATCH = ".tune"
TRIAL_LOG = "trial.log"
_ACTOR_FAILURES = 2  # an actor that dies is started again so often; its run continues from its checkpoint
_LOOK_SECONDS = 0.25
_ENVIRONMENT = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial that failed early has no metric
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class SweepTrial(tune.Trainable):
    """A trial's actor: it drives the run as `pretrain` does, and hands on the points of its curve."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin, or go on where an earlier actor was lost."""
        folder = Path(config["folder"])
        sys.stdout = sys.stderr = (folder / TRIAL_LOG).open("a", encoding="utf-8", buffering=1)  # what `pretrain` says
        self._refused: dict[str, Any] | None = None
        self._trial: TrialRun | None = None
        try:
            self._trial = TrialRun(folder, parent=config["parent"], metric=config["metric"])
        except UserError as error:
            self._refused = {"outcome": "failed", "reason": str(error), "done": True}

    def step(self) -> dict[str, Any]:
        """The next point of the curve; the last result says how it ended."""
        if self._trial is None:
            assert self._refused is not None
            return self._refused
        result = dict(self._trial.next())
        return {**result, "done": "outcome" in result}

    def cleanup(self) -> None:
        """Tune wants no more of it."""
        if self._trial is not None:
            self._trial.stop()


def run_trials(
    trials: Trials,
    sweep: Path,
    *,
    concurrent: int,
    early: EarlyStopping | None,
    metric: str,
    parent: str | None,
    stop: StopSignals,
    ended: Callable[[TrialRecord], None],
) -> None:
    """Run what is left of the trials, on a Ray that is already started; returns when none is left, or asked to stop.

    Args:
        trials: which there are.
        sweep: the sweep's folder.
        concurrent: trials at a time.
        early: when a trial is stopped early; None: never.
        metric: what the sweep compares.
        parent: the sweep's run in MLflow.
        stop: what has been asked of this process.
        ended: is called with the record of each trial that came to an end.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # `_Ends` says what matters of it
    shutil.rmtree(sweep / SCRATCH, ignore_errors=True)
    search = _Search(trials, sweep, parent=parent, metric=metric)
    tuner = tune.Tuner(
        tune.with_resources(SweepTrial, tune.PlacementGroupFactory([_here()])),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=None if early is None else early_stopping(early, trials),
            num_samples=-1,
            max_concurrent_trials=concurrent,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=SCRATCH,
            storage_path=str(sweep),
            stop=_Asked(stop),
            callbacks=[_Ends(trials, search, stop, ended)],
            failure_config=tune.FailureConfig(max_failures=_ACTOR_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a run has its own
            verbose=0,
        ),
    )
    raised: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:  # noqa: BLE001 (handed to the main thread, which raises it)
            raised.append(error)

    thread = threading.Thread(target=fit, name="tuner", daemon=True)  # the main thread keeps the signals
    with stop.noted():
        thread.start()
        while thread.is_alive() and not stop.asked_twice:
            thread.join(_LOOK_SECONDS)
    shutil.rmtree(sweep / SCRATCH, ignore_errors=True)
    if raised:
        raise raised[0]


class _Search(Searcher):
    """Gives out the trials that are left."""

    def __init__(self, trials: Trials, sweep: Path, *, parent: str | None, metric: str) -> None:
        super().__init__()
        self._trials, self._sweep = trials, sweep
        self._shared = {"parent": parent, "metric": metric}
        self.given: dict[str, TrialRecord] = {}

    def suggest(self, trial_id: str) -> Any:
        record = self._trials.next()
        if record is None:
            return Searcher.FINISHED
        self.given[trial_id] = record
        return {"folder": str(self._sweep / record.name), **self._shared}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass  # `_Ends` tells the trials, and these the proposals

    def save(self, checkpoint_path: str) -> None:
        pass  # the trials' records are the state

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Ends(tune.Callback):
    """Writes down what came of each trial."""

    def __init__(
        self, trials: Trials, search: _Search, stop: StopSignals, ended: Callable[[TrialRecord], None]
    ) -> None:
        self._trials, self._search, self._stop, self._ended = trials, search, stop, ended
        self._results: dict[str, dict[str, Any]] = {}
        self._curves: dict[str, dict[float, float]] = {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any) -> None:
        self._results[trial.trial_id] = result
        if CURVE in result:
            self._curves.setdefault(trial.trial_id, {})[result["epoch"]] = result[CURVE]

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        result = self._results.get(trial.trial_id, {})
        outcome = result.get("outcome", "interrupted" if self._stop.asked else "stopped")
        self._note(trial, result, outcome)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        said = str(trial.get_error() or "its process was lost").strip().splitlines()
        result = {**self._results.get(trial.trial_id, {}), "reason": said[-1]}
        self._note(trial, result, "interrupted")

    def _note(self, trial: Any, result: Mapping[str, Any], outcome: str) -> None:
        record = self._search.given[trial.trial_id]
        curve = tuple(sorted(self._curves.get(trial.trial_id, {}).items()))
        record = replace(
            record,
            outcome=cast(Any, None if outcome == "interrupted" else outcome),
            score=result.get("score", curve[-1][1] if curve else None),
            error=result.get("error"),
            steps=result.get("step", 0),
            epochs=result.get("epoch", 0.0),
            images_per_second=result.get("images_per_second", 0.0),
            reason=result.get("reason"),
            curve=curve,
        )
        self._trials.over(record)
        self._ended(record)


class _Asked(tune.Stopper):
    """Ends all trials when somebody asked this process to stop."""

    def __init__(self, stop: StopSignals) -> None:
        self._stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._stop.asked


def early_stopping(early: EarlyStopping, trials: Trials) -> AsyncHyperBandScheduler:
    """A scheduler that knows the curves of the trials that ended in earlier commands."""
    scheduler = AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=CURVE,
        mode="max",
        max_t=cast(Any, early.epochs),
        grace_period=cast(Any, early.grace),
        reduction_factor=early.reduction,
        stop_last_trials=False,
    )
    for record in trials.records.values():
        if record.outcome is not None:
            earlier = cast(Any, SimpleNamespace(trial_id=record.name))
            scheduler.on_trial_add(cast(Any, None), earlier)
            for epoch, score in record.curve:
                scheduler.on_trial_result(cast(Any, None), earlier, {"epoch": epoch, CURVE: score})
    return scheduler


def _here() -> dict[str, float]:
    """A trial's actor stays on this node, which the sweep ends with anyway, and takes none of its CPUs."""
    from ray.util import get_node_ip_address

    return {f"node:{get_node_ip_address()}": 0.001}


def _name(trial: Any) -> str:
    return Path(trial.config["folder"]).name
