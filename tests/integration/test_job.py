"""Pretrainings as jobs of the rehearsal cluster, submitted from another folder, through their whole lives."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from cluster.local import LocalCluster, local_cluster
from cluster.process_tree import process_tree
from ssl_core.train.saved_steps import saved_steps
from tests.cluster.test_local import eventually, token_of

pytestmark = [pytest.mark.ray, pytest.mark.chaos]  # all of them: in one stage, they share one cluster
SECRET = "s3cr3t-value-of-a-key"
TINY = [
    *("experiment=simclr_digits", "train.audit=true", "train.log_every=1", "train.threads=1", "probe.every=null"),
    "model.arguments.channels=[8,8,16,16]",
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


def reached(run: Path, step: int) -> bool:
    """Whether the first attempt has finished a step."""
    metrics = run / "metrics/attempt-0001.jsonl"
    return metrics.exists() and f'"step": {step},' in metrics.read_text(encoding="utf-8")


def audited(run: Path, attempt: int) -> tuple[int, list[int]]:
    """The first step of an attempt, and all that it did."""
    head, *lines = (run / f"audit/attempt-{attempt:04d}.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(head)["first_step"], [json.loads(line)["step"] for line in lines]


def test_what_the_cluster_says_is_what_the_commands_say(shell: Shell) -> None:
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


def test_a_killed_driver_is_submitted_again_and_the_run_goes_on(
    shell: Shell, cluster: LocalCluster, digits: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "two words"
    words = [*TINY, f"data.train={digits}/train", f"storage={tmp_path}/runs", "name='two words'", "train.steps=60"]
    words += ["train.workers=2", "train.checkpoint_every=5", "id=killed", "retries=1", "env=[A_SECRET_KEY]"]
    with shell.start("cluster.submit", "pretrain", *words) as following:
        assert eventually(lambda: reached(run, 12), seconds=180)
        (driver,) = [pid for pid, line in process_tree(cluster.head.pid).items() if "pipelines.pretrain" in line]
        os.kill(driver, signal.SIGKILL)
        said, _ = following.communicate(timeout=240)
    assert following.returncode == 0, said
    assert "job killed: its driver was killed by SIGKILL\nsubmitting it again in 5 s, as killed-2" in said
    assert "trained 60 steps" in said
    _, before = audited(run, 1)
    resumed, after = audited(run, 2)
    assert 5 <= resumed <= before[-1] + 1
    assert after == list(range(resumed, 60))

    status, listed = shell.run("cluster.job", "status", "id=killed")
    assert status == 0
    assert re.match(r"killed  FAILED, its driver was killed by SIGKILL  .*\nkilled-2  SUCCEEDED  ", listed)
    status, log = shell.run("cluster.job", "logs", "id=killed-2")
    assert status == 0
    assert "trained 60 steps" in log
    token = token_of(cluster)
    assert [text for text in (said, listed, log) if SECRET in text or token in text] == []


def test_a_stopped_job_goes_on_where_it_stopped(shell: Shell, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/stopped"
    words = [*TINY, f"data.train={digits}/train", f"storage={tmp_path}/runs", "name=stopped", "train.steps=150"]
    words += ["train.workers=1", "train.checkpoint_every=1h"]
    status, said = shell.run("cluster.submit", "pretrain", *words, "id=first", "wait=false")
    assert status == 0, said
    assert "python -m cluster.job stop id=first address=http://127.0.0.1:" in said
    with shell.start("cluster.job", "logs", "id=first", "follow=true") as following:
        assert eventually(lambda: reached(run, 5), seconds=180)
        assert "first  RUNNING" in shell.run("cluster.job", "list")[1]
        status, said = shell.run("cluster.job", "stop", "id=first")
        assert status == 0
        assert said.endswith("job first: stopped as asked: the same command continues it\n")
        log, _ = following.communicate(timeout=60)
    assert following.returncode == 75
    assert "stopped after step" in log
    (kept,) = saved_steps(run / "checkpoints")
    assert 5 <= kept.step < 150
    assert audited(run, 1)[1] == list(range(kept.step))

    status, said = shell.run("cluster.submit", "pretrain", *words, "id=second")
    assert status == 0, said
    assert audited(run, 2) == (kept.step, list(range(kept.step, 150)))
