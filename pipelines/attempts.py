"""The attempts of a run in one command: as many workers as there is room for, again after what another one may survive.

Ray Train runs one attempt at a time (docs/decisions/0003); when to try again, after how long and with how many workers
is decided here, by the arithmetic of `pipelines.attempt_policy`.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.attempt import run_attempt
from pipelines.attempt_policy import FailureBudget, WorkerSign, choose_workers, is_faster
from pipelines.cluster_room import Resource, ask_for_nodes, capacity, draining_nodes, room, workers_need
from pipelines.console import duration, say
from pipelines.heartbeat import DriversBoard
from pipelines.plan import Plan, check_cache, make_plan
from pipelines.progress import Progress
from pipelines.run_folder import RunFolder, checkpoint_folder
from pipelines.shared_storage import SharedPlaces
from pipelines.stop_signals import StopSignals
from pipelines.supervision import Supervisor
from pipelines.worker_process import Job
from ssl_core.errors import Resumable, WorkerLost
from ssl_core.train.records import part_path, publish_joined, read_part
from ssl_core.train.saved_steps import saved_steps

_SETTLE_SECONDS = 3.0  # for what a lost attempt held to be free again, and for lost nodes to be noticed
_LOOK_SECONDS = 1.0
_HOPE_SECONDS = 30.0  # for nodes for the most workers; an autoscaler looks every five
_MOVE_SECONDS = 5.0


def train_to_the_end(run: RunFolder, plan: Plan, stop: StopSignals) -> None:
    """Train what is left of the run, on a Ray that is already started; on return the run is trained.

    Raises:
        Resumable: asked to stop, no room, or failures too often without progress between them; the same command
            continues the run.
        UserError: a node does not reach the run's folders or the tracker, or what a worker raised.
        WorkerFailed: what a worker raised; another attempt would raise it again.
    """
    began = time.monotonic()
    board = DriversBoard.start()
    budget = FailureBudget(plan.config.train.max_failures)
    least, most = plan.workers
    need = workers_need(least, plan.config.train.device or run.record.device)
    run.update(device="gpu" if need == "GPU" else "cpu")
    patience = plan.config.ray.patience_seconds
    shared = SharedPlaces([run.path, checkpoint_folder(plan.config.checkpoints, run.path)], run.record.tracking_uri)
    speeds: list[tuple[int, float]] = []  # steps and images per second of each attempt that could tell
    why: str | None = None
    while True:
        workers = wait_for_room(
            need, least=least, most=most, stop=stop, settle=why is not None, patience_seconds=patience
        )
        shared.check(need)
        plan = _planned_for(plan, workers)
        attempt = run.record.attempts + 1
        run.update(state="running", attempts=attempt)
        if attempt > 1:
            because = f": {why}" if why else ""
            say(f"attempt {attempt} begins after step {_saved_step(run, plan):,} with {workers} worker(s){because}")
        supervisor = Supervisor(
            stop, hang_timeout=plan.config.train.hang_timeout, move_reason=Surroundings(plan, need, most)
        )
        try:
            result = _carry_out(run, plan, stop, attempt, need, board, supervisor)
        except Resumable as stopped:
            if not isinstance(stopped, WorkerLost) and (stop.asked or supervisor.moving is None):
                raise
            why = why_again(stopped, run, _saved_step(run, plan), stop, supervisor.signs, budget)
            continue
        speeds.append((result["steps"] - _first_step(run, attempt), result["images_per_second"]))
        if result["finished"]:
            break
        if stop.asked or supervisor.moving is None:
            raise Resumable(
                f"stopped after step {result['steps']} of {plan.total_steps}: the same command continues it"
            )
        why = supervisor.moving
    _write_down(run, plan, result, _overall(speeds), time.monotonic() - began)


def wait_for_room(
    need: Resource,
    *,
    least: int,
    most: int,
    stop: StopSignals,
    settle: bool,
    patience_seconds: float,
    room: Callable[[Resource], int] = room,
) -> int:
    """How many workers the next attempt has: as many as there is room for, once there is room for the least.

    Args:
        need: what each of them needs one of.
        least: raised for less than that.
        most: not more than that.
        stop: cuts the wait short.
        settle: wait a little for more than the least, since an attempt has just ended.
        patience_seconds: to wait for the least.
        room: says how many there is room for.

    Raises:
        Resumable: there was room for less than the least all the time, or asked to stop.
    """
    began = time.monotonic()
    said = False
    try:
        while True:
            found, waited = room(need), time.monotonic() - began
            workers = choose_workers(found, least=least, most=most)
            if workers is not None and (workers == most or waited > _SETTLE_SECONDS or not settle):
                return workers
            there = f"the cluster has room for {found} worker(s) that need a {need} each, of {capacity(need)} in all"
            if workers is None and waited > patience_seconds:
                raise Resumable(f"{there}; train.workers asks for at least {least}: the same command tries again")
            if workers is None and waited > (_SETTLE_SECONDS if settle else 0):
                if not said:
                    say(f"{there}: waiting up to {duration(patience_seconds)} for {least}")
                said = True
                # the most may be more than there can be, and then no node comes at all
                wanted = most if waited < min(_HOPE_SECONDS, patience_seconds / 2) else least
                ask_for_nodes(need, capacity(need) - found + wanted)  # at each look: others say theirs
            if stop.wait(_LOOK_SECONDS):
                raise Resumable("stopped while waiting for room: the same command continues it")
    finally:
        if said:
            ask_for_nodes(need, 0)


class Surroundings:
    """Looks around every few seconds: whether a node of this attempt is going, or there is room for a faster one."""

    def __init__(self, plan: Plan, need: Resource, most: int) -> None:
        self._lanes, self._most = plan.lanes, most
        self._need: Resource = need
        self._next_look = 0.0
        self._room_before = 0

    def __call__(self, signs: Sequence[WorkerSign]) -> str | None:
        now = time.monotonic()
        if now < self._next_look or not signs:
            return None
        self._next_look = now + _MOVE_SECONDS
        leaving = {sign.node for sign in signs} & draining_nodes()
        if leaving:
            return f"node {min(leaving)[:8]} is being taken away"
        workers = self._lanes.world
        if workers == self._most or any(sign.doing == "starting" for sign in signs):
            return None
        found = room(self._need)
        lasting, self._room_before = min(found, self._room_before), found
        possible = min(self._most, workers + lasting)
        if is_faster(self._lanes.count, workers=workers, possible=possible):
            return f"there is room for {possible} instead of {workers}"
        return None


def _carry_out(
    run: RunFolder,
    plan: Plan,
    stop: StopSignals,
    attempt: int,
    need: Resource,
    board: DriversBoard,
    supervisor: Supervisor,
) -> dict[str, Any]:
    """One attempt; its records are joined, however it ends."""
    job = Job(config=dict(run.record.config), folder=str(run.path), attempt=attempt)
    progress = Progress(run.path, attempt, plan.total_steps, plan.schedule.steps_per_epoch)
    try:
        with stop.noted():
            return run_attempt(
                job, workers=plan.lanes.world, need=need, board=board, supervisor=supervisor, progress=progress
            )
    finally:
        shutil.rmtree(run.path / ".ray", ignore_errors=True)
        try:
            publish_joined(run.path, "metrics")
            publish_joined(run.path, "audit")
        except OSError as error:  # what the attempt said is more important; the parts are there
            say(f"warning: cannot join the run's records ({error})")


def why_again(
    lost: Resumable,
    run: RunFolder,
    saved: int,
    stop: StopSignals,
    signs: Sequence[WorkerSign],
    budget: FailureBudget,
) -> str:
    """Note a failure, say it, and wait; on return another attempt may begin, for the reason given.

    Raises:
        Resumable: asked to stop, or failures too often.
    """
    stopped = f"stopped; step {saved:,} is saved: the same command continues it"
    if stop.asked:
        raise Resumable(stopped) from lost
    why = str(lost)
    step = min((sign.step for sign in signs), default=saved)
    run.update(failures=[*run.record.failures, {"step": step, "reason": why}])
    if not budget.spend(saved):
        raise Resumable(
            f"{why}; {budget.failures} attempts failed with no newer checkpoint than after step {saved:,} "
            f"(train.max_failures={budget.max_failures}): the same command continues it"
        ) from lost
    say(
        f"{why}: trying again in {budget.back_off_seconds:.0f} s "
        f"(failure {budget.failures} of {budget.max_failures} without a newer checkpoint)"
    )
    if stop.wait(budget.back_off_seconds):
        raise Resumable(stopped) from lost
    return why


def _write_down(run: RunFolder, plan: Plan, result: dict[str, Any], speed: float, seconds: float) -> None:
    """Record that the run is trained, and say so."""
    training = {
        "workers": plan.lanes.world,
        "steps": result["steps"],
        "images_per_second": round(speed, 2),
        "seconds": round(seconds, 1),
        "quarantined": result["quarantined"],
        "attempts": run.record.attempts,
        "failures": list(run.record.failures),
    }
    run.update(state="trained", training=training)
    say(f"trained {result['steps']} steps in {duration(seconds)}, {speed:,.0f} images/s")


def _planned_for(plan: Plan, workers: int) -> Plan:
    """The same plan with another number of workers, each of which owns other lanes."""
    if workers == plan.lanes.world:
        return plan
    changed = make_plan(plan.values, workers=workers)
    check_cache(changed)
    return changed


def _saved_step(run: RunFolder, plan: Plan) -> int:
    """The newest checkpoint's step, 0 where there is none."""
    saved = saved_steps(checkpoint_folder(plan.config.checkpoints, run.path))
    return saved[0].step if saved else 0


def _first_step(run: RunFolder, attempt: int) -> int:
    """Steps that were done before the attempt: its metrics begin with the one after."""
    path = part_path(run.path, "metrics", attempt)
    first = read_part(path)[0] if path.exists() else None
    return 0 if first is None else first - 1


def _overall(speeds: Sequence[tuple[int, float]]) -> float:
    """Images per second over attempts of different length: all their images by all their time."""
    told = [(steps, speed) for steps, speed in speeds if steps > 0 and speed > 0]
    return sum(steps for steps, _ in told) / sum(steps / speed for steps, speed in told) if told else 0.0
