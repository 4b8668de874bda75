"""What surrounds the training of an attempt, with bodies that fail in every way, on a real Ray."""

import os
import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from pipelines.attempt import run_attempt
from pipelines.failures import WorkerFailed
from pipelines.heartbeat import DriversBoard
from pipelines.progress import Progress
from pipelines.stop_signals import StopSignals
from pipelines.supervision import Supervisor
from pipelines.worker import Body, Job
from ssl_core.errors import Resumable, UserError, WorkerLost
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
        raise ZeroDivisionError("a mistake of the user's")
    context.collectives.barrier()
    return ended(context, 3)


class Unpicklable(Exception):
    """Of the kind that Ray cannot carry."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def raises_what_cannot_be_pickled(job: Job, context: RunContext) -> LoopResult:
    raise Unpicklable(1, 2)


def stops_resumably(job: Job, context: RunContext) -> LoopResult:
    raise Resumable("the loss is not finite")


def is_not_what_the_user_meant(job: Job, context: RunContext) -> LoopResult:
    raise UserError("write it another way")


def is_killed_on_one(job: Job, context: RunContext) -> LoopResult:
    steps(context, 3)
    if context.collectives.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    steps(context, 10)
    return ended(context, 13)


def freezes_on_one(job: Job, context: RunContext) -> LoopResult:
    steps(context, 3)
    if context.collectives.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    steps(context, 10)
    return ended(context, 13)


def hangs_on_one(job: Job, context: RunContext) -> LoopResult:
    steps(context, 3)
    context.at(3, "stepping")
    if context.collectives.rank == 1:
        time.sleep(1000)
    context.at(4, "stepping")
    context.collectives.barrier()
    return ended(context, 4)


def probes_for_long(job: Job, context: RunContext) -> LoopResult:
    context.at(3, "probing")
    time.sleep(6)
    return ended(context, 3)


def steps_until_stopped(job: Job, context: RunContext) -> LoopResult:
    done = 0
    while not any(context.collectives.gather_objects(context.should_stop())):
        context.at(done, "stepping")
        time.sleep(0.05)
        done += 1
    return ended(context, done, finished=False)


def test_an_exception_on_one_worker_fails_with_its_own_traceback(run: Run) -> None:
    with pytest.raises(WorkerFailed) as failed:
        run(raises_on_one)
    assert str(failed.value) == "ZeroDivisionError: a mistake of the user's"
    assert "in raises_on_one" in failed.value.said


def test_so_does_one_that_ray_cannot_carry(run: Run) -> None:
    with pytest.raises(WorkerFailed, match="Unpicklable: 1 and 2"):
        run(raises_what_cannot_be_pickled)


@pytest.mark.parametrize(
    ("body", "kind"), [(stops_resumably, Resumable), (is_not_what_the_user_meant, UserError)], ids=["stop", "user"]
)
def test_what_a_worker_says_is_said(run: Run, body: Body, kind: type[Exception]) -> None:
    with pytest.raises(kind) as said:
        run(body)
    assert type(said.value) is kind
    assert str(said.value) in ("the loss is not finite", "write it another way")


def test_a_killed_worker_is_lost(run: Run) -> None:
    with pytest.raises(WorkerLost, match=r"worker 1 \(node .*, pid \d+\) went away \(its process ended"):
        run(is_killed_on_one)


@pytest.mark.parametrize(
    ("body", "what"), [(freezes_on_one, "gave no sign for"), (hangs_on_one, "hung for")], ids=["frozen", "hanging"]
)
def test_a_worker_that_does_not_go_on_is_named_and_ended(run: Run, body: Body, what: str) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerLost, match=rf"worker 1 \(node .*, pid (\d+)\) {what} [3-9] s in step") as lost:
        run(body, hang_timeout=3)
    pid = int(str(lost.value).split("pid ")[1].split(")")[0])
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3]
    assert time.monotonic() - began < 60


def test_only_steps_are_watched(run: Run) -> None:
    assert run(probes_for_long, hang_timeout=2)["finished"]


def test_asked_to_stop_the_workers_do(run: Run) -> None:
    stop = StopSignals()
    before = signal.signal(signal.SIGALRM, stop.handle)
    try:
        with stop.noted():
            signal.setitimer(signal.ITIMER_REAL, 12)
            result = run(steps_until_stopped, stop=stop)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not result["finished"]
    assert (stop.seconds_since or 99) < 20
