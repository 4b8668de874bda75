"""A pretraining as a job of the rehearsal cluster, submitted from another folder, through its whole life."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from cluster.local import LocalCluster, local_cluster
from cluster.process_tree import process_tree
from tests.cluster.test_local import eventually, token_of

SECRET = "s3cr3t-value-of-a-key"
TINY = [
    *("experiment=simclr_digits", "train.workers=2", "train.audit=true", "train.log_every=1", "probe.every=null"),
    *("model.arguments.channels=[8,8,16,16]", "train.threads=1", "train.checkpoint_every=5"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[LocalCluster]:
    with local_cluster(tmp_path_factory.mktemp("jobs"), nodes=2, object_store=False, mlflow=False) as running:
        yield running


class Shell:
    """A terminal in a folder of its own, with what `cluster.local` says to source there."""

    def __init__(self, folder: Path, cluster: LocalCluster, root: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, **cluster.environment, "PYTHONPATH": str(root), "A_SECRET_KEY": SECRET}

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str]:
        with self.start(*words) as process:
            said, _ = process.communicate(timeout=240)
        return process.returncode, said


@pytest.fixture
def shell(tmp_path: Path, cluster: LocalCluster, root: Path) -> Shell:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "notes.txt").write_text("goes along")
    return Shell(folder, cluster, root)


def driver_of(cluster: LocalCluster, job: str) -> int | None:
    """The process that runs the job's command."""
    found = [
        pid for pid, line in process_tree(cluster.head.pid).items() if f"id_of_{job}" in line and " -c " not in line
    ]
    return min(found, default=None)


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()[1:]]


@pytest.mark.ray
@pytest.mark.chaos
def test_a_killed_driver_is_submitted_again_and_the_run_goes_on(
    shell: Shell, cluster: LocalCluster, digits: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "two words"
    words = [*TINY, f"data.train={digits}/train", f"storage={tmp_path}/runs", "name='two words'", "train.steps=60"]
    begun = time.monotonic()
    with shell.start("cluster.submit", "pretrain", *words, "id=killed", "retries=1", "env=[A_SECRET_KEY]") as following:
        metrics = run / "metrics/attempt-0001.jsonl"
        assert eventually(lambda: metrics.exists() and '"step": 12,' in metrics.read_text(), seconds=180)
        (driver,) = [pid for pid, line in process_tree(cluster.head.pid).items() if "pipelines.pretrain" in line]
        os.kill(driver, signal.SIGKILL)
        said, _ = following.communicate(timeout=240)
    assert following.returncode == 0, said
    assert "job killed: its driver was killed by SIGKILL\nsubmitting it again in 5 s, as killed-2" in said
    assert "trained 60 steps" in said
    assert time.monotonic() - begun < 240
    first = steps_in(run / "audit/attempt-0001.jsonl")
    (head, *_) = (run / "audit/attempt-0002.jsonl").read_text(encoding="utf-8").splitlines()
    resumed = json.loads(head)["first_step"]
    assert 10 <= resumed <= first[-1] + 1
    assert steps_in(run / "audit/attempt-0002.jsonl") == list(range(resumed, 60))

    status, listed = shell.run("cluster.job", "status", "id=killed")
    assert status == 0
    assert re.match(r"killed  FAILED, its driver was killed by SIGKILL  .*\nkilled-2  SUCCEEDED  ", listed)
    status, log = shell.run("cluster.job", "logs", "id=killed-2")
    assert status == 0
    assert "trained 60 steps" in log
    token = token_of(cluster)
    assert not [text for text in (said, listed, log) if SECRET in text or token in text]


@pytest.mark.ray
@pytest.mark.chaos
def test_a_job_is_left_looked_at_and_stopped(shell: Shell, digits: Path, tmp_path: Path) -> None:
    words = [*TINY, f"data.train={digits}/train", f"storage={tmp_path}/runs", "name=stopped", "train.steps=5000"]
    status, said = shell.run("cluster.submit", "pretrain", *words, "id=stopped", "wait=false")
    assert status == 0, said
    assert "job stopped: python -m pipelines.pretrain" in said
    with shell.start("cluster.job", "logs", "id=stopped", "follow=true") as following:
        metrics = tmp_path / "runs/stopped/metrics/attempt-0001.jsonl"
        assert eventually(lambda: metrics.exists() and '"step": 5,' in metrics.read_text(), seconds=180)
        assert "stopped  RUNNING" in shell.run("cluster.job", "list")[1]
        status, said = shell.run("cluster.job", "stop", "id=stopped")
        assert (status, said) == (
            0,
            "job stopped was asked to stop\njob stopped: stopped as asked: the same command continues it\n",
        )
        log, _ = following.communicate(timeout=60)
    assert following.returncode == 75
    assert "stopped after step" in log


@pytest.mark.ray
def test_what_the_cluster_says_is_what_the_command_says(shell: Shell) -> None:
    status, said = shell.run("cluster.submit", "probe", "run=none", "storage=/nowhere", "id=bad")
    assert status == 2, said
    assert "there is no run none" in said
    status, said = shell.run("cluster.submit", "probe", "run=none", "id=bad", "folder=null")
    assert (status, said) == (1, "submit: a job of this id is there already: give another id=, or none\n")
    status, said = shell.run("cluster.job", "status", "id=bed")
    assert status == 2
    assert "did you mean bad?" in said
    shell.environment["RAY_AUTH_TOKEN"] = "another"
    status, said = shell.run("cluster.job", "list")
    assert status == 1
    assert re.fullmatch(r"job: http://127\.0\.0\.1:\d+ refuses the token of RAY_AUTH_TOKEN \(403\): .*\n", said)
