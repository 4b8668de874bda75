"""A job that is stopped through Ray's jobs API saves its step; the same job, given again, goes on from there."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from cluster.local import local_cluster
from ssl_core.train.saved_steps import saved_steps
from tests.cluster.test_local import ask, eventually, token_of

STEPS = 150
TINY = [
    *("experiment=simclr_digits", "name=job", "train.workers=1", "train.audit=true", "train.log_every=1"),
    *("model.arguments.channels=[8,8,16,16]", "train.threads=1", "train.checkpoint_every=1h", "probe.every=null"),
]


@pytest.mark.ray
@pytest.mark.chaos
def test_a_stopped_job_goes_on_where_it_stopped(digits: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pipelines.pretrain", *TINY, f"data.train={digits}/train"]
    words += [f"storage={tmp_path}/runs", f"train.steps={STEPS}"]
    run = tmp_path / "runs/job"
    metrics = run / "metrics/attempt-0001.jsonl"
    with local_cluster(tmp_path / "cluster", nodes=1, object_store=False, mlflow=False) as cluster:
        jobs, token = f"{cluster.dashboard}/api/jobs/", token_of(cluster)

        def submit() -> str:
            return ask(jobs, {"entrypoint": shlex.join(words)}, token=token)["submission_id"]

        def said(job: str) -> str:
            return ask(f"{jobs}{job}/logs", token=token)["logs"]

        def status(job: str) -> str:
            return ask(f"{jobs}{job}", token=token)["status"]

        first = submit()
        assert eventually(lambda: metrics.exists() and '"step": 5,' in metrics.read_text(), seconds=180), said(first)
        ask(f"{jobs}{first}/stop", {}, token=token)
        assert eventually(lambda: status(first) == "STOPPED"), said(first)
        assert "stopped after step" in said(first)
        (kept,) = saved_steps(run / "checkpoints")
        assert 5 <= kept.step < STEPS
        assert len((run / "audit/attempt-0001.jsonl").read_text().splitlines()) == kept.step + 1  # and a head

        second = submit()
        assert eventually(lambda: status(second) in ("SUCCEEDED", "FAILED"), seconds=180), said(second)
        assert status(second) == "SUCCEEDED", said(second)
    head, *lines = (run / "audit/attempt-0002.jsonl").read_text().splitlines()
    assert json.loads(head) == {"first_step": kept.step}
    assert [json.loads(line)["step"] for line in lines] == list(range(kept.step, STEPS))
