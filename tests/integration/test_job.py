"""A job that is stopped through Ray's jobs API saves its step; the same job, given again, goes on from there."""

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.local import local_cluster
from ssl_core.train.saved_steps import saved_steps

STEPS = 150
TINY = [
    *("experiment=simclr_digits", "name=job", "train.workers=1", "train.audit=true", "train.log_every=1"),
    *("model.arguments.channels=[8,8,16,16]", "train.threads=1", "train.checkpoint_every=1h", "probe.every=null"),
]


def eventually(question: Callable[[], bool], what: Callable[[], Any]) -> None:
    end = time.monotonic() + 180
    while not question():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.chaos
def test_a_stopped_job_goes_on_where_it_stopped(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local_cluster(tmp_path / "cluster", nodes=1, object_store=False, mlflow=False) as cluster:
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        from ray.job_submission import JobStatus, JobSubmissionClient

        client = JobSubmissionClient(cluster.dashboard)
        words = [sys.executable, "-m", "pipelines.pretrain", *TINY, f"data.train={digits}/train"]
        words += [f"storage={tmp_path}/runs", f"train.steps={STEPS}"]

        def submit() -> str:
            return client.submit_job(entrypoint=shlex.join(words))

        run = tmp_path / "runs/job"
        first, metrics = submit(), run / "metrics/attempt-0001.jsonl"
        eventually(lambda: metrics.exists() and '"step": 5,' in metrics.read_text(), lambda: client.get_job_logs(first))
        client.stop_job(first)
        eventually(lambda: client.get_job_status(first).is_terminal(), lambda: client.get_job_logs(first))
        assert "stopped after step" in client.get_job_logs(first)
        (kept,) = saved_steps(run / "checkpoints")
        assert 5 <= kept.step < STEPS
        assert len((run / "audit/attempt-0001.jsonl").read_text().splitlines()) == kept.step + 1  # and a head

        second = submit()
        eventually(lambda: client.get_job_status(second).is_terminal(), lambda: client.get_job_logs(second))
        assert client.get_job_status(second) == JobStatus.SUCCEEDED, client.get_job_logs(second)
    head, *lines = (run / "audit/attempt-0002.jsonl").read_text().splitlines()
    assert json.loads(head) == {"first_step": kept.step}
    assert [json.loads(line)["step"] for line in lines] == list(range(kept.step, STEPS))
