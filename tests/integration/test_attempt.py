"""What surrounds the training of an attempt, with bodies that fail in every way, on a real Ray."""

import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from threading import Thread

import pytest

from pipelines.attempt import run_attempt
from pipelines.failures import WorkerFailed
from pipelines.heartbeat import DriversBoard
from pipelines.progress import Progress
from pipelines.stop_signals import StopSignals
from pipelines.supervision import Supervisor
from pipelines.worker_process import Body, Job
from ssl_core.errors import Resumable, WorkerLost
from ssl_core.train.context import RunContext
from ssl_core.train.loop import LoopResult

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

Run = Callable[..., dict[str, object]]


@pytest.fixture(scope="module")
def board() -> Generator[DriversBoard]:
    from pipelines.ray_context import start_ray

    start_ray(None, workers=2)
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    yield DriversBoard.start()
    ray.shutdown()


@pytest.fixture
def run(board: DriversBoard, tmp_path: Path) -> Run:
    def attempt(body: Body, *, stop: StopSignals | None = None, hang_timeout: float = 30) -> dict[str, object]:
        numbers.append(len(numbers) + 1)
        return run_attempt(
            Job(config={"checkpoints": None}, folder=str(tmp_path), attempt=numbers[-1]),
            workers=2,
            need="CPU",
            board=board,
            supervisor=Supervisor(stop or StopSignals(), hang_timeout=hang_timeout),
            progress=Progress(tmp_path, numbers[-1], 10, 10),
            body=body,
        )

    return attempt


numbers: list[int] = []  # attempts so far: the board takes none twice


def ended(context: RunContext, steps: int, *, finished: bool = True) -> LoopResult:
    return LoopResult(
        steps=steps, finished=finished, seconds=1.0, images_per_second=context.collectives.world, quarantined=0
    )


def steps(context: RunContext, until: int) -> None:
    """Steps of 50 ms in which the workers wait for each other."""
    for done in range(until):
        context.at(done, "stepping")
        context.collectives.barrier()
        time.sleep(0.05)


def raises_on_one(job: Job, context: RunContext) -> LoopResult:
    steps(context, 3)
    if context.collectives.rank == 1:
        raise Unpicklable(1, 2)
    context.collectives.barrier()
    return ended(context, 3)


class Unpicklable(Exception):
    """Of the kind that Ray cannot carry."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def stops_resumably(job: Job, context: RunContext) -> LoopResult:
    raise Resumable("the loss is not finite")


def hangs_on_one(job: Job, context: RunContext) -> LoopResult:
    steps(context, 3)
    context.at(3, "stepping")
    if context.collectives.rank == 1:
        time.sleep(1000)
    context.at(4, "stepping")
    context.collectives.barrier()
    return ended(context, 4)


def steps_until_stopped(job: Job, context: RunContext) -> LoopResult:
    done = 0
    while not any(context.collectives.gather_objects(context.should_stop())):
        context.at(done, "stepping")
        time.sleep(0.05)
        done += 1
        (Path(job.folder) / "stepping").touch()
    return ended(context, done, finished=False)


def test_an_exception_on_one_worker_fails_with_its_own_traceback(run: Run) -> None:
    with pytest.raises(WorkerFailed, match="Unpicklable: 1 and 2") as failed:
        run(raises_on_one)
    assert "in raises_on_one" in failed.value.said


def test_what_a_worker_says_is_said(run: Run) -> None:
    with pytest.raises(Resumable) as said:
        run(stops_resumably)
    assert type(said.value) is Resumable
    assert str(said.value) == "the loss is not finite"


def test_a_worker_that_hangs_is_named_and_ended(run: Run) -> None:
    with pytest.raises(WorkerLost, match=r"worker 1 \(node .*, pid (\d+)\) hung for [3-9] s in step") as lost:
        run(hangs_on_one, hang_timeout=3)
    pid = int(str(lost.value).split("pid ")[1].split(")")[0])
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3]


def test_asked_to_stop_the_workers_do(run: Run, tmp_path: Path) -> None:
    stop = StopSignals()
    before = signal.signal(signal.SIGUSR1, stop.handle)

    def ask() -> None:
        while not (tmp_path / "stepping").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    Thread(target=ask, daemon=True).start()
    try:
        with stop.noted():
            result = run(steps_until_stopped, stop=stop)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not result["finished"]
    assert (stop.seconds_since or 99) < 20
