"""A worker process is killed at a random step; the same command ends in the same bytes as the undisturbed run."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS = 14


def command(data: Path, storage: Path, name: str, workers: int) -> list[str]:
    return [
        *(sys.executable, "-m", "pipelines.pretrain", "experiment=simclr_digits", f"data.train={data}/train"),
        *(f"storage={storage}", f"name={name}", f"train.workers={workers}", "data.lanes=4", "train.global_batch=64"),
        *(f"train.steps={STEPS}", "train.checkpoint_every=3", "train.audit=true", "train.log_every=1"),
        *("model.arguments.channels=[8,8,16,16]", "train.threads=1"),
    ]


def kill_a_worker(driver: subprocess.Popen[str], metrics: Path, step: int) -> None:
    """SIGKILL one training process of this driver once `step` was logged."""
    end = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count('"loss"') < step:
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < end, "no progress"
        time.sleep(0.02)
    family = descendants(driver.pid)
    workers = [pid for pid, title in family.items() if "RayTrainWorker" in title]
    assert workers, family
    os.kill(random.choice(workers), signal.SIGKILL)


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
    return {pid: Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in found[1:]}


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize("workers", [1, 3])
def test_killed_and_given_again_is_bit_equal(digits: Path, tmp_path: Path, workers: int) -> None:
    undisturbed = subprocess.run(
        command(digits, tmp_path, "calm", workers), capture_output=True, text=True, check=False, timeout=300
    )
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr

    killed_at = random.randrange(2, STEPS - 2)
    with subprocess.Popen(
        command(digits, tmp_path, "killed", workers), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as driver:
        kill_a_worker(driver, tmp_path / "killed/metrics/attempt-0001.jsonl", killed_at)
        said, errors = driver.communicate(timeout=200)
    assert driver.returncode == 75, (killed_at, said, errors)
    assert "the same command continues it" in errors.strip().splitlines()[-1]
    assert not (tmp_path / "killed/summary.json").exists()

    again = subprocess.run(
        command(digits, tmp_path, "killed", workers), capture_output=True, text=True, check=False, timeout=300
    )
    assert again.returncode == 0, again.stdout + again.stderr

    first, second = (
        [json.loads(line) for line in (tmp_path / name / "audit.jsonl").read_text().splitlines()]
        for name in ("calm", "killed")
    )
    assert [line["step"] for line in second] == list(range(STEPS)), killed_at
    assert first == second, killed_at
    assert len(list((tmp_path / "killed/audit").iterdir())) == 2  # two attempts
    weights = [(tmp_path / name / "export/encoder.safetensors").read_bytes() for name in ("calm", "killed")]
    assert weights[0] == weights[1], killed_at
