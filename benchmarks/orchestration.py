"""What does Ray Train take away from the loop, against `torchrun` with the same loop, and what do two workers give?

    python benchmarks/orchestration.py data.train=<shards> [key=value …]

Two workers through Ray Train, two through torchrun, one through torchrun, in turns, `--rounds` times; each runs
`pipelines.worker.run_worker` with the same config (SimCLR's CIFAR-10 recipe, 60 steps, no probe, a thread a core).
Prints images per second of the steps (the first left out), medians of the paired ratios, and the processor seconds
that Ray's own processes took beside the workers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

from pipelines.config import compose
from pipelines.worker import keep_freed_memory, run_worker
from pipelines.worker_process import Job
from ssl_core.collectives import Collectives, leave_group, start_gloo
from ssl_core.train.context import InProcessContext

STEPS = 60
_WORKER = "ray::RayTrainWorker"  # how Ray names a worker's process


def job(overrides: list[str], workers: int, folder: Path) -> Job:
    """The same attempt for every way to run it."""
    folder.mkdir()
    fixed = ["experiment=simclr_cifar10", f"train.steps={STEPS}", "data.lanes=8", f"train.workers={workers}"]
    return Job(config=compose("pretrain", [*fixed, *overrides]), folder=str(folder), attempt=1)


def worker_of_torchrun(path: Path) -> None:
    """What torchrun starts."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"  # torchrun's own store
    collectives = start_gloo(rank, world, address) if world > 1 else Collectives()
    keep_freed_memory()
    work = Job(**json.loads(path.read_text()))
    result = run_worker(work, InProcessContext(folder=Path(work.folder), collectives=collectives))
    if rank == 0:
        (Path(work.folder) / "result.json").write_text(json.dumps(vars(result)))
    leave_group()


def by_torchrun(work: Job, workers: int) -> float:
    """Images per second."""
    path = Path(work.folder) / "job.json"
    path.write_text(json.dumps(asdict(work)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    subprocess.run([*command, __file__, "--worker", str(path)], check=True, capture_output=True)
    return json.loads((Path(work.folder) / "result.json").read_text())["images_per_second"]


def by_ray(work: Job, workers: int) -> tuple[float, float]:
    """Images per second, and processor seconds of Ray's own processes while the attempt ran."""
    from pipelines.attempt import run_attempt
    from pipelines.heartbeat import DriversBoard
    from pipelines.progress import Progress
    from pipelines.stop_signals import StopSignals
    from pipelines.supervision import Supervisor

    before = daemon_seconds()
    result = run_attempt(
        work,
        workers=workers,
        need="CPU",
        board=DriversBoard.start(),
        supervisor=Supervisor(StopSignals(), hang_timeout=None),
        progress=Progress(Path(work.folder), work.attempt, STEPS, STEPS),
    )
    return result["images_per_second"], daemon_seconds() - before


def ray_processes() -> dict[str, tuple[str, float]]:
    """Command line and processor seconds so far of each process below this one, by process id."""
    parents: dict[str, str] = {}
    found: dict[str, tuple[str, float]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            command = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it ended
        parents[folder.name] = words[1]
        found[folder.name] = command, (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    mine = {str(os.getpid())}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return {pid: found[pid] for pid in mine - {str(os.getpid())}}


def daemon_seconds() -> float:
    """Processor seconds so far of Ray's processes but for the workers of a training."""
    return sum(seconds for command, seconds in ray_processes().values() if _WORKER not in command)


def wait_for_workers_to_leave() -> None:
    """Let the next measurement have both cores."""
    while any(_WORKER in command for command, _ in ray_processes().values()):
        sleep(0.1)


def main() -> None:
    """Run all in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker_of_torchrun(arguments.worker)
        return
    from pipelines.ray_context import start_ray

    start_ray(None, workers=2)
    figures: list[tuple[float, float, float]] = []
    daemons: list[float] = []
    with tempfile.TemporaryDirectory() as storage:
        for number in range(arguments.rounds):

            def make(name: str, workers: int, number: int = number) -> Any:
                return job(arguments.overrides, workers, Path(storage) / f"{name}-{number}")

            ray, spent = by_ray(make("ray", 2), 2)
            wait_for_workers_to_leave()
            figures.append((ray, by_torchrun(make("torchrun", 2), 2), by_torchrun(make("alone", 1), 1)))
            daemons.append(spent)
            print("images/s: Ray Train {:.0f}, torchrun {:.0f}, one worker {:.0f}".format(*figures[-1]), flush=True)
    print(
        f"Ray Train / torchrun {median(a / b for a, b, _ in figures):.3f}, two workers / one "
        f"{median(a / c for a, _, c in figures):.3f}; Ray's own processes {median(daemons):.1f} CPU seconds an attempt"
    )


if __name__ == "__main__":
    main()
