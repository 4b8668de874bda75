"""What do checkpoints cost the steps, and what does it cost to go on from one?

    python benchmarks/recovery.py /tmp/cifar/train [--store s3://bucket/prefix] [--rounds 3] [key=value …]

1. Cost: SimCLR steps on 32 px images with a checkpoint every so many. The steps right after one, while it is copied
   and written, against as many later ones; what it adds, over the default interval, is its share (target: 2 %).
2. Resume: the same run, interrupted at step 100 and at step 10,000, is continued by the same command; seconds from the
   command's start to its first new step, in turn (target: the same).
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any

from pipelines.config import compose
from pipelines.plan import Plan, make_plan, with_absolute_paths
from pipelines.run_folder import RunFolder
from pipelines.worker import keep_freed_memory, run_worker
from pipelines.worker_process import Job
from ssl_core.storage.s3 import folder_at
from ssl_core.train.checkpoint import CheckpointStore
from ssl_core.train.context import InProcessContext
from ssl_core.train.records import part_path, read_part
from ssl_core.train.saved_steps import CHECKPOINTS, saved_steps
from ssl_core.train.saver import SaveConfig

BLOCK, NEAR, EARLY, LATE = 20, 8, 100, 10_000
TINY = [
    *("model=resnet_micro", "model.arguments.layers=[1,1,1,1]", "model.arguments.channels=[8,8,16,16]"),
    *("method.projector=[16,8]", "model.image_size=8", "train.global_batch=16", "data.lanes=2", "data.block=8192"),
    *("train.checkpoint_every=100000", "train.steps=20000"),
]


def plan_of(words: list[str]) -> tuple[dict[str, Any], Plan]:
    """A SimCLR run of one worker, without looks at its features."""
    shared = ["method=simclr", "train.workers=1", "probe.every=null", "train.health_every=1000000"]
    values = with_absolute_paths(compose("pretrain", [*shared, *words]))
    return values, make_plan(values)


@dataclass(frozen=True, kw_only=True)
class Stopwatch(InProcessContext):
    """Notes when each step begins, and stops after the last one asked for."""

    last: int
    began: list[float] = field(default_factory=list[float])

    def should_stop(self) -> bool:
        self.began.append(monotonic())
        return len(self.began) >= self.last


def cost(data: str, words: list[str], rounds: int, store: str | None) -> None:
    """Print what a checkpoint adds to the steps after it."""
    steps = BLOCK * (rounds + 1) + 2
    model = ["model=resnet_micro", "model.image_size=32", "train.global_batch=256"]
    more = [f"data.train={data}", f"train.steps={steps + 50}", f"train.checkpoint_every={BLOCK}"]
    values, plan = plan_of([*model, *more, *words])
    with tempfile.TemporaryDirectory() as folder:
        bucket = None if store is None else folder_at(store)
        watch = Stopwatch(folder=Path(folder), last=steps, bucket=bucket)
        run_worker(Job(config=values, folder=folder, attempt=1), watch)
        newest = CheckpointStore(watch.checkpoints).newest_readable()[0]
        assert newest is not None
        megabytes = sum(one.nbytes for one in (*newest.model.values(), *newest.optimizer.values())) / 1e6
    extra: list[float] = []
    for start in range(BLOCK, BLOCK * rounds + 1, BLOCK):
        near, far = (watch.began[first + NEAR] - watch.began[first] for first in (start - 1, start + NEAR))
        extra.append(near - far)
    step = median(second - first for first, second in zip(watch.began, watch.began[1:], strict=False))
    share = 100 * median(extra) / SaveConfig().every_seconds
    print(
        f"cost: a checkpoint of {megabytes:.1f} MB ({plan.config.model.name}, batch {plan.lanes.global_batch}) adds "
        f"{1000 * median(extra):.0f} ms ({1000 * min(extra):.0f} … {1000 * max(extra):.0f}) to {NEAR} steps of "
        f"{1000 * step:.0f} ms: {share:.3f} % at one every {SaveConfig().every_seconds:.0f} s (target: 2 %)"
    )


def interrupted(data: str, storage: Path, step: int) -> list[str]:
    """Make a run that was stopped at a step; the command that continues it, but for its name."""
    words = [f"data.train={data}", f"storage={storage}", *TINY]
    values, plan = plan_of(words)
    run = RunFolder.open(str(storage), f"at-{step}", identity=plan.identity, config=values)
    run.update(state="interrupted", attempts=1)
    run_worker(Job(config=values, folder=str(run.path), attempt=1), Stopwatch(folder=run.path, last=step - 1))
    (found,) = saved_steps(run.path / CHECKPOINTS)
    assert found.step == step
    shared = ["method=simclr", "train.workers=1", "probe.every=null", "train.health_every=1000000", "train.log_every=1"]
    return [sys.executable, "-m", "pipelines.pretrain", *shared, *words]


def seconds_to_first_step(command: list[str], storage: Path, step: int, number: int) -> float:
    """Of a copy of the run, which is stopped again then."""
    name = f"at-{step}-{number}"
    shutil.copytree(storage / f"at-{step}", storage / name)
    record = storage / name / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "name": name}))
    began = monotonic()
    with subprocess.Popen([*command, f"name={name}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        part = part_path(storage / name, "metrics", 2)
        while not part.exists() or not read_part(part)[1]:
            assert run.poll() is None, run.communicate()
            sleep(0.02)
        seconds = monotonic() - began
        assert read_part(part)[1][0]["step"] == step + 1
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=60)
    return seconds


def resume(data: str, rounds: int) -> None:
    """Print what it costs to go on early and late in a run."""
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        commands = {step: interrupted(data, storage, step) for step in (EARLY, LATE)}
        times: dict[int, list[float]] = {EARLY: [], LATE: []}
        for number in range(rounds):
            for step in (EARLY, LATE) if number % 2 else (LATE, EARLY):
                times[step].append(seconds_to_first_step(commands[step], storage, step, number))
    ratio = median(late / early for early, late in zip(times[EARLY], times[LATE], strict=True))
    print(
        f"resume: first new step after {median(times[EARLY]):.1f} s at step {EARLY:,}, {median(times[LATE]):.1f} s at "
        f"step {LATE:,}: ratio {ratio:.2f} (target: the same)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="32 px shards, such as CIFAR-10's")
    parser.add_argument("--store", help="s3://… for the checkpoints of part 1")
    parser.add_argument("--rounds", type=int, default=5)
    arguments, words = parser.parse_known_args()
    keep_freed_memory()
    cost(arguments.data, words, arguments.rounds, arguments.store)
    resume(arguments.data, arguments.rounds)


if __name__ == "__main__":
    main()
