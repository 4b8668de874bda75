"""One attempt: one `TorchTrainer.fit()` with a fixed number of workers, watched from the driver's main thread.

Ray Train's own retries and checkpoints stay off: it commits only after every rank was polled, has no back-off, and does
not see a worker that hangs.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from pipelines.attempt_policy import whereabouts
from pipelines.cluster_room import Resource
from pipelines.console import say
from pipelines.failures import meaning
from pipelines.heartbeat import DriversBoard, News
from pipelines.progress import Progress
from pipelines.supervision import Supervisor
from pipelines.worker_process import Body, Job, ray_worker
from ssl_core.errors import WorkerLost

_POLL_SECONDS, _LOOK_SECONDS = 0.25, 1.0
_HANG_PATIENCE_SECONDS, _STOP_PATIENCE_SECONDS = 60.0, 3.0  # for `fit()` to return when its workers are gone


def run_attempt(
    job: Job,
    *,
    workers: int,
    need: Resource,
    board: DriversBoard,
    supervisor: Supervisor,
    progress: Progress,
    body: Body | None = None,
) -> dict[str, Any]:
    """Run one attempt on a Ray that is already started.

    Args:
        job: what the workers run.
        workers: how many.
        need: what each of them needs one of.
        board: where their beats arrive.
        supervisor: decides whether the attempt goes on.
        progress: is shown.
        body: what each worker does; None: it trains.

    Returns:
        The `LoopResult` of rank 0 as plain values.

    Raises:
        WorkerLost: a worker, node or actor went away, or the supervisor ended the attempt.
        UserError, Resumable: raised on a worker, in its own words.
        WorkerFailed: any other exception on a worker.
    """
    outcome: dict[str, Any] = {}

    def fit() -> None:
        try:
            trainer = ray_trainer(
                ray_worker,
                {**asdict(job), "board": board.actor, "body": body},
                workers=workers,
                need=need,
                name=f"attempt-{job.attempt:04d}",
                storage=str(Path(job.folder) / ".ray"),
            )
            outcome["result"] = trainer.fit().return_value
        except BaseException as error:  # noqa: BLE001 (handed to the main thread, which raises it)
            outcome["error"] = error

    thread = threading.Thread(target=fit, name="trainer", daemon=True)
    thread.start()
    _watch(thread, job.attempt, workers, board, supervisor, progress)
    if "result" in outcome:
        return cast(dict[str, Any], outcome["result"])
    if supervisor.hang:
        raise WorkerLost(str(supervisor.hang))
    if "error" not in outcome:
        raise WorkerLost("the workers were ended before a step was done")
    words = board.news(job.attempt, stop=True).last_words
    where = {sign.rank: f" (node {sign.node[:8]}, pid {sign.pid})" for sign in supervisor.signs}
    raise meaning(outcome["error"], words, where) from outcome["error"]


def _watch(
    thread: threading.Thread,
    attempt: int,
    workers: int,
    board: DriversBoard,
    supervisor: Supervisor,
    progress: Progress,
) -> None:
    """Return when the attempt is over, or when it was ended and Ray does not notice."""
    stop, placed, next_look, give_up = False, workers == 1, 0.0, float("inf")
    while thread.is_alive() and time.monotonic() < give_up:
        thread.join(_POLL_SECONDS)
        progress.show()
        if time.monotonic() < next_look or give_up < float("inf"):
            continue
        next_look = time.monotonic() + _LOOK_SECONDS
        news = board.news(attempt, stop=stop)
        order = supervisor.look(news.signs)
        if not placed and len(news.signs) == workers:
            say(whereabouts(news.signs))
            placed = True
        if order == "stop" and not stop:
            say(f"\nstopping after this step: {supervisor}")
        stop = stop or order != "go"
        if order == "stop":
            board.news(attempt, stop=True)
        elif order == "end":
            _end_workers(news)
            give_up = time.monotonic() + (_HANG_PATIENCE_SECONDS if supervisor.hang else _STOP_PATIENCE_SECONDS)
    progress.show()
    progress.close()


def _end_workers(news: News) -> None:
    """Kill the attempt's processes on all nodes, stopped ones too: without their reservation Ray lets none live.

    `ray.kill` asks the process first, and takes five seconds to see that a stopped one does not answer.
    """
    if news.placement_group is not None:
        from ray.util import remove_placement_group

        remove_placement_group(news.placement_group)


def ray_trainer(
    loop: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    *,
    workers: int,
    need: Resource,
    name: str,
    storage: str,
    group_seconds: float = 1800.0,
) -> Any:
    """Ray Train's trainer, which tries once: by default workers that cannot start are tried again for ever.

    Args:
        loop: what each worker runs.
        config: what it is given.
        workers: how many.
        need: what each of them needs one of.
        name: of the folder below `storage`.
        storage: for Ray Train's own files, which only its controller on the driver's node writes.
        group_seconds: for the workers to find each other, and for one collective operation.
    """
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = need == "GPU"
    return TorchTrainer(
        loop,
        train_loop_config=config,
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=int(group_seconds)),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpus, resources_per_worker=None if gpus else {"CPU": 1}
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
