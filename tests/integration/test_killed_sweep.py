"""A sweep with real runs: its driver is killed in the middle, the same command goes on, and one of its runs fails."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

TINY = ["model=resnet_micro", "model.image_size=16", "model.in_chans=1", "train.global_batch=128", "data.lanes=2"]
SWEEP = """
search: grid
parameters:
  optim.base_rate: {values: [0.1, 1.0e+30]}
"""


@pytest.mark.ray
def test_a_sweep_goes_on_after_its_driver_was_killed_and_finished_runs_are_not_run_again(
    digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "rates.yaml").write_text(SWEEP)
    folder = tmp_path / "runs/rates"
    words = [f"sweep={tmp_path}/rates.yaml", *TINY, "method=simclr", "train.steps=12", "tune.concurrent=1"]
    words += [f"data.train={digits}/train", f"data.val={digits}/val", f"storage={tmp_path}/runs", "name=rates"]
    command = [sys.executable, "-m", "pipelines.tune", *words, "optim.name=sgd", "optim.clip_norm=null"]

    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("1 of 2"):
            break
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = folder / "optim.base_rate-0.1-seed-0"
    before = (done / "run.json").read_bytes(), (done / "run.json").stat().st_mtime_ns

    second = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 run(s) to do, 1 at a time" in second.stdout
    assert before == ((done / "run.json").read_bytes(), (done / "run.json").stat().st_mtime_ns)
    outcomes = {
        path.parent.name: json.loads(path.read_text())["outcome"] for path in sorted(folder.glob("*/trial.json"))
    }
    assert outcomes == {"optim.base_rate-0.1-seed-0": "finished", "optim.base_rate-1e+30-seed-0": "failed"}
    assert "optim.base_rate-1e+30-seed-0: failed: " in second.stdout
    assert "pipelines.pretrain" in second.stdout

    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["state"], summary["workers"], summary["steps"]) == ("finished", 1, 12)
    assert summary["winner"]["point"] == {"optim.base_rate": 0.1}
    assert (folder / "sweep.png").stat().st_size > 1000
    with closing(sqlite3.connect(tmp_path / "runs/mlflow.db")) as database:
        runs = dict(database.execute("select name, status from runs"))
        parents = [value for (value,) in database.execute("select value from tags where key = 'mlflow.parentRunId'")]
        parent = database.execute("select run_uuid from runs where name = 'rates'").fetchall()
    assert runs["rates"] == "FINISHED"
    assert "RUNNING" not in runs.values()
    assert len(runs) == 3
    assert [(one,) for one in set(parents)] == parent
    assert not (folder / ".tune").exists()

    again = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "is finished" in again.stdout
