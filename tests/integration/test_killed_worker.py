"""Workers are killed and frozen at random steps; the command ends by itself, in the bytes of the undisturbed run."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from pipelines.config import compose
from pipelines.worker import run_worker
from pipelines.worker_process import Job
from ssl_core.collectives import Collectives
from ssl_core.train.context import InProcessContext
from ssl_core.train.records import publish_joined
from tests.contract.gloo_pool import GlooPool

STEPS = 24
HANG_TIMEOUT = 15


def overrides(data: Path, storage: Path, name: str, workers: int) -> list[str]:
    return [
        *("experiment=simclr_digits", f"data.train={data}/train", f"storage={storage}", f"name={name}"),
        *(f"train.workers={workers}", "data.lanes=4", "train.global_batch=128", f"train.hang_timeout={HANG_TIMEOUT}"),
        *(f"train.steps={STEPS}", "train.checkpoint_every=3", "train.audit=true", "train.log_every=1"),
        *("model.arguments.channels=[8,8,16,16]", "train.threads=1"),
    ]


def undisturbed(collectives: Collectives, words: list[str], folder: Path) -> None:
    """The same run without Ray; called in each process of the pool."""
    job = Job(config=compose("pretrain", words), folder=str(folder), attempt=1)
    run_worker(job, InProcessContext(folder=folder, collectives=collectives))
    if collectives.rank == 0:
        publish_joined(folder, "audit")


@pytest.fixture(scope="module")
def pool() -> Generator[GlooPool]:
    running = GlooPool()
    yield running
    running.close()


def hit_a_worker(driver: subprocess.Popen[str], metrics: Path, step: int, number: signal.Signals) -> int:
    """Send a signal to one training process of this driver once `step` was logged; its process id."""
    end = time.monotonic() + 120
    while not metrics.exists() or not any(f'"step": {n},' in metrics.read_text() for n in range(step, STEPS)):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < end, "no progress"
        time.sleep(0.02)
    family = descendants(driver.pid)
    workers = [pid for pid, title in family.items() if "RayTrainWorker" in title]
    assert workers, family
    hit = random.choice(workers)
    os.kill(hit, number)
    return hit


def descendants(root: int) -> dict[int, str]:
    """Process id and title of everything below a process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            pid, rest = entry.read_text().split(" (", 1)
            parents[int(pid)] = int(rest.rsplit(") ", 1)[1].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    titles: dict[int, str] = {}
    for pid in found[1:]:
        with contextlib.suppress(OSError):
            titles[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return titles


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize(
    ("workers", "hits"),
    [(2, (signal.SIGKILL, signal.SIGSTOP)), (3, (signal.SIGKILL,))],
    ids=["two-killed-then-frozen", "three-killed"],
)
def test_the_same_command_ends_in_the_same_bytes(
    digits: Path, tmp_path: Path, pool: GlooPool, workers: int, hits: tuple[signal.Signals, ...]
) -> None:
    words = overrides(digits, tmp_path, "hit", workers)
    pool.run(workers, undisturbed, words, tmp_path / "calm")

    command = [sys.executable, "-m", "pipelines.pretrain", *words]
    at = sorted(random.sample(range(2, STEPS - 6), len(hits)))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        for attempt, (step, number) in enumerate(zip(at, hits, strict=True), start=1):
            pid = hit_a_worker(driver, tmp_path / f"hit/metrics/attempt-{attempt:04d}.jsonl", step, number)
            if number == signal.SIGSTOP:
                frozen, frozen_at = pid, time.monotonic()
                while Path(f"/proc/{frozen}").exists():
                    assert time.monotonic() < frozen_at + HANG_TIMEOUT + 6
                    time.sleep(0.1)
        said, errors = driver.communicate(timeout=200)
    assert driver.returncode == 0, (at, said, errors)

    first, second = (
        [json.loads(line) for line in (tmp_path / name / "audit.jsonl").read_text().splitlines()]
        for name in ("calm", "hit")
    )
    assert [line["step"] for line in second] == list(range(STEPS)), at
    assert first == second, at
    weights = [(tmp_path / name / "export/encoder.safetensors").read_bytes() for name in ("calm", "hit")]
    assert weights[0] == weights[1], at

    summary = json.loads((tmp_path / "hit/summary.json").read_text())
    assert summary["attempts"] == len(hits) + 1
    reasons = [failure["reason"] for failure in summary["failures"]]
    for reason, number in zip(reasons, hits, strict=True):
        assert ("gave no sign for" in reason) == (number == signal.SIGSTOP), reasons
        assert reason in said
    assert "attempt 2 begins after step" in said
