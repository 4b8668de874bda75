"""A planned run, carried out on a Ray that is already started: train, probe, draw, register; with its copy in MLflow.

The command `pretrain` does it in its own process, a trial of a sweep in an actor.
"""

from contextlib import suppress

from pipelines.attempts import train_to_the_end
from pipelines.console import say
from pipelines.evaluation import probe_on_ray
from pipelines.finished_run import read_probe_report
from pipelines.mlflow_connection import check_reachable, masked, tracking_uri
from pipelines.pictures import PICTURES, draw_on_ray
from pipelines.plan import Plan
from pipelines.provenance import environment
from pipelines.run_facts import log_facts, publish_run_card
from pipelines.run_folder import RunFolder
from pipelines.stop_signals import StopSignals
from pipelines.tracking import Status, Tracker
from pipelines.weights import place_initial_weights
from ssl_core.errors import Resumable
from ssl_core.train.profile import PROFILE


def prepare(run: RunFolder, plan: Plan, named_uri: str | None) -> str:
    """Make sure that a new run can be tracked, and place the weights that it starts from; MLflow's URI.

    Args:
        run: new, or one that is continued.
        plan: of its configuration.
        named_uri: `tracking.uri` with its password, which neither the plan nor the record has.

    Raises:
        UserError: the tracker does not answer, or `init` names nothing that fits.
    """
    uri = tracking_uri(named_uri, plan.config.storage)
    if _new_there(run, uri):
        check_reachable(uri)
    if run.record.state == "new":
        place_initial_weights(plan, run.path, uri)
    return uri


def carry_out(run: RunFolder, plan: Plan, stop: StopSignals, uri: str, *, parent: str | None = None) -> None:
    """Do what is left of the run; on return it is finished.

    Args:
        run: locked by the caller.
        plan: of its configuration.
        stop: what has been asked of this process.
        uri: from `prepare`.
        parent: the run in MLflow that this one is a child of; such a run has no pictures of its own.

    Raises:
        Resumable, UserError, WorkerFailed: as `train_to_the_end`.
    """
    tracker = Tracker.open(
        uri,
        config=plan.config.tracking,
        run_name=run.record.name,
        run_folder=run.path,
        run_id=None if _new_there(run, uri) else run.record.mlflow_run,
        parent=parent,
    )
    made_with = environment()
    run.update(mlflow_run=tracker.run_id, tracking_uri=masked(uri), environment=made_with, copied=False)
    if made_with["code"] is not None and made_with["code"]["dirty"]:
        commit = made_with["code"]["commit"][:12]
        say(f"the code is not that of its commit {commit}: it has uncommitted changes, and the run says so")
    log_facts(tracker, run.record, plan)
    status: Status = "FAILED"
    try:
        _train_and_probe(run, plan, stop, with_pictures=parent is None)
        _copy_results(run, plan, tracker)
        if plan.config.register:
            tracker.flush()
            _register(run, plan, uri)
        status = "FINISHED"
    except (Resumable, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        if run.record.state == "running":
            with suppress(OSError):  # a full disk must not hide why the run ends; `runs` sees that nobody holds it
                run.update(state="interrupted")
        _close(run, tracker, status, wait_seconds=1 if stop.asked_twice else 5 if stop.asked else 30)


def complete(run: RunFolder, plan: Plan, named_uri: str | None) -> None:
    """Do what a finished run may still lack: the rest of its copy in MLflow, and its registration.

    Args:
        run: finished, and locked by the caller.
        plan: of its configuration.
        named_uri: as for `prepare`.

    Raises:
        UserError: the tracker does not answer.
    """
    uri = tracking_uri(named_uri, plan.config.storage)
    if not run.record.copied:
        tracker = Tracker.open(
            uri,
            config=plan.config.tracking,
            run_name=run.record.name,
            run_folder=run.path,
            run_id=run.record.mlflow_run,
        )
        log_facts(tracker, run.record, plan)
        _copy_results(run, plan, tracker)
        run.update(mlflow_run=tracker.run_id)
        _close(run, tracker, "FINISHED", wait_seconds=30)
    if plan.config.register:
        _register(run, plan, uri)


def _close(run: RunFolder, tracker: Tracker, status: Status, *, wait_seconds: float) -> None:
    """Send MLflow what is left, and note whether all of it arrived."""
    copied = tracker.finish(status, wait_seconds=wait_seconds)
    if not copied:
        say("MLflow does not have all of this run yet, its folder has: the same command sends the rest")
    with suppress(OSError):
        run.update(copied=copied)


def _new_there(run: RunFolder, uri: str) -> bool:
    return run.record.mlflow_run is None or run.record.tracking_uri != masked(uri)


def _train_and_probe(run: RunFolder, plan: Plan, stop: StopSignals, *, with_pictures: bool) -> None:
    if run.record.state != "trained":
        train_to_the_end(run, plan, stop)
        stop.raise_if_asked()
    report = probe_on_ray(plan, run.path)
    if report is not None:
        say(report.table())
    publish_run_card(run.path)
    if with_pictures:
        _draw(run, plan)
    run.write_summary({**(run.record.training or {}), "probe": report and report.to_dict()})


def _copy_results(run: RunFolder, plan: Plan, tracker: Tracker) -> None:
    """What the folder of a finished run has, beside its metrics, into MLflow; again is no harm."""
    report = read_probe_report(run.path)
    if report is not None:
        tracker.log_results(report.metrics(), step=plan.total_steps)
        tracker.set_tags({"mlflow.note.content": report.table()})  # the run's description on its page
    for name in ("config.json", "README.md"):
        tracker.log_artifact(run.path / "export" / name, "export")
    for folder in (PICTURES, PROFILE):
        for path in sorted((run.path / folder).glob("*")):
            tracker.log_artifact(path, folder)
    tracker.log_artifact(run.path / "summary.json")


def _register(run: RunFolder, plan: Plan, uri: str) -> None:
    from pipelines.registry import register_run

    assert plan.config.register is not None, "checked by the caller"
    say(str(register_run(run.path, plan.config.register, uri)))


def _draw(run: RunFolder, plan: Plan) -> None:
    """Draw the run's pictures; a run without them is a whole run."""
    from ray.exceptions import RayError

    try:
        draw_on_ray(plan, run.path)
    except RayError as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        say(f"the run is complete but for its pictures, which could not be drawn: {said[-1]}")
