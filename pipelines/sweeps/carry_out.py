"""Run what is left of a sweep, and write down what came out: for people, for MLflow, and for whoever reads JSON."""

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any

from pipelines.attempts import wait_for_room
from pipelines.cluster_room import capacity, workers_need
from pipelines.config import compose
from pipelines.console import say
from pipelines.failures import WorkerFailed
from pipelines.mlflow_connection import check_reachable, connect
from pipelines.plan import check_inputs, default_workers, make_plan, with_absolute_paths
from pipelines.pretraining import carry_out as carry_out_run
from pipelines.pretraining import complete, prepare
from pipelines.provenance import environment, source_tags
from pipelines.ray_context import ray_for
from pipelines.run_folder import RUN_FILE, RunFolder, read_record
from pipelines.stop_signals import StopSignals
from pipelines.sweeps import report
from pipelines.sweeps.sweep import Sweep
from pipelines.sweeps.trials import TrialRecord, Trials, point_scores, winner
from pipelines.tracking import Tracker
from ssl_core.errors import Resumable
from ssl_core.storage.local import publish_bytes

TABLE, PICTURE = "sweep.md", "sweep.png"
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", None: "KILLED"}  # in MLflow


def carry_out(sweep: Sweep, stop: StopSignals) -> None:
    """Run the trials that are left, and the winner in full if asked to.

    Raises:
        Resumable: asked to stop, no room, or trials whose process was lost; the same command continues the sweep.
        UserError: the tracker does not answer.
    """
    config, uri = sweep.plan.config, str(sweep.values["tracking"]["uri"])
    most = sweep.plan.workers[1]
    with sweep.run.locked():
        known = sweep.run.record.mlflow_run if sweep.run.record.tracking_uri == uri else None
        if known is None:
            check_reachable(uri)
        with ray_for(config.ray.cluster, workers=most * (sweep.tune.concurrent or _runs_here(most))):
            stop.take_over()
            concurrent = _concurrent(sweep, stop)
            trials = sweep.trials(threads=_threads(sweep, concurrent))
            tracker = Tracker.open(
                uri, config=config.tracking, run_name=sweep.name, run_folder=sweep.folder, run_id=known
            )
            sweep.run.update(state="running", mlflow_run=tracker.run_id, tracking_uri=uri)
            with _told(sweep, tracker, stop):
                _run(sweep, trials, concurrent, tracker, stop)


def _run(sweep: Sweep, trials: Trials, concurrent: int, tracker: Tracker, stop: StopSignals) -> None:
    # Ray reads what `start_ray` sets when it is first imported
    from pipelines.sweeps.on_tune import run_trials

    began = time.monotonic()
    tracker.log_params({"tune": vars(sweep.tune), "sweep": vars(sweep.search), **sweep.values})
    tags = {"sweep": sweep.name, "manifest": sweep.plan.train_data.digest}
    tracker.set_tags({**tags, **source_tags(environment(), "tune")})
    if trials.left:
        say(f"{trials.left} run(s) to do, {concurrent} at a time, in {sweep.folder}")
        run_trials(
            trials,
            sweep.folder,
            concurrent=concurrent,
            early=sweep.early,
            metric=sweep.tune.metric,
            parent=tracker.run_id,
            stop=stop,
            ended=_teller(trials, sweep.tune.metric),
        )
    _close_children(sweep, trials)
    stop.raise_if_asked()
    text = write_results(sweep, trials)
    tracker.set_tags({"mlflow.note.content": text})
    for path in (TABLE, PICTURE):
        tracker.log_artifact(sweep.folder / path)
    if trials.left:
        raise Resumable(f"{trials.left} run(s) of the sweep were interrupted: the same command continues them")
    say(text)
    if winner(point_scores(trials)) is None:
        raise OSError(f"no run of the sweep was trained to its end: see {sweep.folder}/*/trial.log")
    full = _train_winner(sweep, trials, stop) if sweep.tune.train_best else None
    summary = _summary(sweep, trials, concurrent, full, time.monotonic() - began)
    tracker.log_results(_numbers(trials), step=0)
    sweep.run.write_summary(summary)
    tracker.log_artifact(sweep.run.path / "summary.json")


def write_results(sweep: Sweep, trials: Trials) -> str:
    """Write the table and the picture; the table with the winner's command."""
    metric = sweep.tune.metric
    text = report.table(trials, sweep.parameters, metric)
    whole = trials.expected * sweep.epochs
    used = sum(one.epochs for one in trials.records.values())
    text += f"\n\nTrained {used:,.4g} epochs of the {whole:,.4g} that every run in full would take."
    best = report.in_full(trials, sweep.words, sweep.name)
    if best is not None:
        text += f"\n\nThe winner in full, judged on validation data:\n\n    {best.command}"
    publish_bytes(sweep.folder / TABLE, f"# Sweep {sweep.name}\n\n{text}\n".encode())
    report.draw(trials, sweep.parameters, metric, sweep.folder / PICTURE)
    return text


def say_results(sweep: Sweep) -> None:
    """What `write_results` wrote in an earlier command."""
    say((sweep.folder / TABLE).read_text(encoding="utf-8"))


def _runs_here(workers: int) -> int:
    """Runs that this machine has GPUs for, or else cores."""
    import torch

    slots = torch.cuda.device_count() if default_workers() > 1 or torch.cuda.is_available() else os.cpu_count() or 1
    return max(1, slots // workers)


def _concurrent(sweep: Sweep, stop: StopSignals) -> int:
    """Runs at a time: what the cluster holds, or fewer if asked for; waits for room for one.

    Raises:
        Resumable: the cluster stays smaller than one run.
    """
    least, most = sweep.plan.workers
    need = workers_need(least, sweep.plan.config.train.device)
    if capacity(need) < least:
        patience = sweep.plan.config.ray.patience_seconds
        wait_for_room(need, least=least, most=most, stop=stop, settle=False, patience_seconds=patience)
    fits = max(1, capacity(need) // most)
    if sweep.plan.config.ray.cluster is None and need == "CPU":
        fits = max(1, sweep.tune.concurrent or _runs_here(most))  # a Ray of its own has as many as are wanted
    wanted = sweep.tune.concurrent or fits
    if wanted > fits:
        say(f"the cluster has room for {fits} run(s) of {most} worker(s): not {wanted} at a time, but {fits}")
    return min(wanted, fits)


def _threads(sweep: Sweep, concurrent: int) -> int:
    """CPU threads of a worker: the runs share the cores."""
    cluster = sweep.plan.config.ray.cluster
    cores = (os.cpu_count() or 1) if cluster is None else capacity("CPU")
    return max(1, cores // (concurrent * sweep.plan.workers[1]))


def _teller(trials: Trials, metric: str) -> Callable[[TrialRecord], None]:
    """Says a line for each run that is over."""

    def tell(record: TrialRecord) -> None:
        done = trials.expected - trials.left
        score = "" if record.score is None else f" {report.TITLES[metric]} {100 * record.score:.2f}"
        if record.outcome == "finished" and record.error is not None:
            score += f" ± {100 * record.error:.2f}"
        how = {
            "finished": f"{score} % after {record.epochs:.4g} epochs",
            "stopped": f" stopped early after {record.epochs:.4g} epochs, at {100 * (record.score or 0):.2f} %",
            "failed": f" failed: {record.reason}",
            None: f" interrupted{f': {record.reason}' if record.reason else ''}",
        }[record.outcome]
        say(f"{done} of {trials.expected} · {record.name}:{how}")

    return tell


@contextmanager
def _told(sweep: Sweep, tracker: Tracker, stop: StopSignals) -> Generator[None]:
    """Within: the sweep runs in MLflow; afterwards its run there has the status that it ended with."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (Resumable, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        if sweep.run.record.state == "running":
            with suppress(OSError):
                sweep.run.update(state="interrupted")
        tracker.finish(status, wait_seconds=1 if stop.asked_twice else 5 if stop.asked else 30)


def _close_children(sweep: Sweep, trials: Trials) -> None:
    """End the runs in MLflow whose process could not: it was stopped by the scheduler in the middle, or lost."""
    from mlflow.exceptions import MlflowException

    client = connect(str(sweep.values["tracking"]["uri"]))
    for trial in trials.records.values():
        folder = sweep.folder / trial.name
        run = read_record(folder).mlflow_run if (folder / RUN_FILE).exists() else None
        with suppress(MlflowException):  # the server is away: its runs can be ended by hand
            if run is not None and client.get_run(run).info.status == "RUNNING":
                client.set_terminated(run, _STATUS[trial.outcome])


def _train_winner(sweep: Sweep, trials: Trials, stop: StopSignals) -> RunFolder:
    """`pretrain` with the winner's values: its run, finished."""
    best = report.in_full(trials, sweep.words, sweep.name)
    assert best is not None, "checked by the caller"
    values = with_absolute_paths(compose("pretrain", best.overrides))
    plan = make_plan(values)
    run = RunFolder.open(values["storage"], best.name, identity=plan.identity, config=values)
    if run.finished:
        with run.locked():
            complete(run, plan, plan.config.tracking.uri)
    else:
        check_inputs(plan)
        say(f"training the winner in full: {plan.total_steps:,} steps in {run.path}")
        try:
            with run.locked():
                carry_out_run(run, plan, stop, prepare(run, plan, plan.config.tracking.uri))
        except WorkerFailed as error:
            say(error.said)
            raise SystemExit(1) from error
    return run


def _summary(sweep: Sweep, trials: Trials, concurrent: int, full: RunFolder | None, seconds: float) -> dict[str, Any]:
    records = list(trials.records.values())
    scores = point_scores(trials)
    best = winner(scores)
    assert best is not None, "checked by the caller"
    speeds = [one.images_per_second for one in records if one.images_per_second]
    return {
        "workers": sweep.plan.workers[1],
        "concurrent": concurrent,
        "steps": sum(one.steps for one in records),
        "images_per_second": round(sum(speeds) / len(speeds), 2) if speeds else 0.0,
        "seconds": round(seconds, 1),
        "probe": full.summary()["probe"] if full else None,
        "metric": sweep.tune.metric,
        "winner": {"point": dict(best.point), "mean": best.mean, "deviation": best.deviation},
        "points": [
            {
                "point": dict(one.point),
                "scores": list(one.scores),
                "stopped": one.stopped,
                "failed": one.failed,
                "epochs": one.epochs,
            }
            for one in scores
        ],
        "epochs": sum(one.epochs for one in records),
        "epochs_of_all_in_full": trials.expected * sweep.epochs,
        "trained": full.record.name if full else None,
    }


def _numbers(trials: Trials) -> dict[str, float]:
    best = winner(point_scores(trials))
    outcomes = [one.outcome for one in trials.records.values()]
    counts = {f"sweep.{name}": float(outcomes.count(name)) for name in ("finished", "stopped", "failed")}
    return {**counts, **({} if best is None or best.mean is None else {"sweep.best": best.mean})}
