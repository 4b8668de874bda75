"""One attempt: one `TorchTrainer.fit()` with a fixed number of workers, watched from the driver's main thread.

Ray Train's own retries and checkpoints stay off: it commits only after every rank was polled and has no back-off.
Progress, the stop signal and errors go through the run's folder, which all nodes share.
"""

import json
import signal
import threading
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, cast

from pipelines.console import LiveLine, duration, say
from pipelines.worker import Job, ray_worker
from ssl_core.errors import Resumable, UserError
from ssl_core.train.context import STOP_FILE
from ssl_core.train.records import part_path, read_part

_POLL_SECONDS = 0.25


class WorkerFailed(RuntimeError):
    """Code on a worker raised; `said` is its own traceback."""

    def __init__(self, said: str) -> None:
        super().__init__(said.strip().splitlines()[-1])
        self.said = said


def run_attempt(job: Job, *, workers: int, total_steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """Run one attempt on a Ray that is already started.

    Returns:
        The `LoopResult` of rank 0 as plain values.

    Raises:
        UserError, Resumable: raised on a worker, in its own words.
        Resumable: a worker, node or actor went away.
        WorkerFailed: any other exception on a worker.
    """
    folder = Path(job.folder)
    (folder / STOP_FILE).unlink(missing_ok=True)
    outcome: dict[str, Any] = {}

    def fit() -> None:
        try:
            outcome["result"] = _trainer(job, workers).fit().return_value
        except BaseException as error:  # noqa: BLE001 (handed to the main thread, which raises it)
            outcome["error"] = error

    thread = threading.Thread(target=fit, name="trainer", daemon=True)
    progress = _Progress(folder, job.attempt, total_steps, steps_per_epoch)
    with _signals_to(lambda: (folder / STOP_FILE).touch()):
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            progress.show()
    progress.show()
    progress.close()
    if "error" in outcome:
        raise _translated(outcome["error"], progress.step) from outcome["error"]
    return cast(dict[str, Any], outcome["result"])


def _trainer(job: Job, workers: int) -> Any:
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    gpus = float(ray.cluster_resources().get("GPU", 0)) >= workers
    return TorchTrainer(
        ray_worker,
        train_loop_config=asdict(job),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=1800),
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpus, resources_per_worker=None if gpus else {"CPU": 1}
        ),
        run_config=RunConfig(
            name=f"attempt-{job.attempt:04d}",
            storage_path=str(Path(job.folder) / ".ray"),
            failure_config=FailureConfig(max_failures=0),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _translated(error: BaseException, step: int) -> BaseException:
    """The error in the words of whoever raised it first."""
    failures = list(cast(dict[int, Exception], getattr(error, "worker_failures", {})).values())
    for failure in failures:
        for cause in _causes(failure):
            if isinstance(cause, UserError | Resumable):
                return type(cause)(str(cause)) if type(cause) in (UserError, Resumable) else Resumable(str(cause))
    said = [text for text in (getattr(failure, "_traceback_str", "") for failure in failures) if text]
    lost = [failure for failure in failures if "HealthCheck" in type(failure).__name__ or "Died" in str(failure)]
    if not failures:
        lost = [cast(Exception, getattr(error, "controller_failure", error))]
    if lost:
        lines = (str(lost[0]).strip() or type(lost[0]).__name__).splitlines()
        what = lines[0] if failures else lines[-1].strip()  # Ray ends a traceback of its own with what went wrong
        return Resumable(
            f"the attempt ended after step {step} because a worker went away ({what}): the same command continues it"
        )
    return WorkerFailed(said[0] if said else "".join(traceback.format_exception(failures[0])))


def _causes(error: BaseException) -> Generator[BaseException]:
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        pending += [one.__cause__, one.__context__, getattr(one, "cause", None), getattr(one, "_base_exc", None)]


@contextmanager
def _signals_to(stop: Callable[[], None]) -> Generator[None]:
    """Within: the first SIGINT or SIGTERM asks the workers to stop after their step; a second one leaves at once."""
    asked = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        say("\nstopping after this step; once more to leave at once")
        stop()

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class _Progress:
    """The live line, from the last line of rank 0's metrics; the workers' events in lines of their own."""

    def __init__(self, folder: Path, attempt: int, total_steps: int, steps_per_epoch: int) -> None:
        self._metrics, self._events = part_path(folder, "metrics", attempt), part_path(folder, "events", attempt)
        self._total, self._per_epoch = total_steps, steps_per_epoch
        self._live = LiveLine()
        self._first: tuple[int, float] | None = None
        self._events_said = 0
        self.step = 0

    def show(self) -> None:
        """Say what is new."""
        events = read_part(self._events)[1] if self._events.exists() else []
        for event in events[self._events_said :]:
            say(str(event["event"]))
        self._events_said = len(events)
        line = self._last()
        if line is None or int(line["step"]) == self.step:
            return
        self.step = int(line["step"])
        self._first = self._first or (self.step, float(line["time"]))
        first_step, first_time = self._first
        pace = (float(line["time"]) - first_time) / (self.step - first_step) if self.step > first_step else 0.0
        left = f" · {duration(pace * (self._total - self.step))} left" if pace else ""
        self._live.show(
            f"step {self.step}/{self._total} · epoch {self.step / self._per_epoch:.2f} · loss {line['loss']:.4f} · "
            f"{line['images_per_second']:,.0f} images/s{left}",
            force=self.step == self._total,
        )

    def close(self) -> None:
        """End the live line."""
        self._live.close()

    def _last(self) -> dict[str, Any] | None:
        """The last whole line of the metrics."""
        try:
            with self._metrics.open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - 4096))
                lines = file.read().split(b"\n")[:-1]
            line = cast(dict[str, Any], json.loads(lines[-1])) if lines else {}
        except (OSError, json.JSONDecodeError):
            return None
        return line if "step" in line else None
