"""The tracker against real MLflow: a sqlite store, and a server process that goes away in the middle of a run."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.mlflow_connection import connect
from pipelines.tracking import STEP_METRIC, Tracker, TrackingConfig, flatten
from ssl_core.errors import UserError


def write(run: Path, attempt: int, steps: Sequence[int], *, loss: float = 0.5) -> None:
    part = run / "metrics" / f"attempt-{attempt:04d}.jsonl"
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "time": 1000.0 + step, "loss": loss, "rate": 0.1}) + "\n")


def history(client: MlflowClient, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]


def open_tracker(uri: str, run: Path, run_id: str | None = None, said: list[str] | None = None) -> Tracker:
    heard = said if said is not None else list[str]()
    config = TrackingConfig(uri=uri, experiment="tests")
    return Tracker.open(uri, config=config, run_name=run.name, run_folder=run, run_id=run_id, say=heard.append)


def test_a_run_and_its_continuation(store: str, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    write(run, 1, range(1, 6))
    tracker = open_tracker(store, run)
    tracker.log_params({"seed": 1, "train": {"workers": 2, "lr": 0.1}, "s3": {"access_key": "AKIA"}})
    tracker.set_tags({"method": "simclr"})
    tracker.log_results({"probe/linear": 0.5}, step=5)
    (run / "probe.json").write_text("{}")
    tracker.log_artifact(run / "probe.json")
    assert tracker.finish("KILLED")

    client = connect(store)
    first = client.get_run(tracker.run_id)
    assert first.info.status == "KILLED"
    assert first.info.run_name == "a"
    assert first.data.params == {"seed": "1", "train.workers": "2", "train.lr": "0.1"}
    assert first.data.tags["method"] == "simclr"
    assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["probe.json"]
    assert str(tmp_path / "mlartifacts") in str(first.info.artifact_uri)

    write(run, 2, range(4, 9), loss=0.25)  # it went back to the checkpoint after step 3
    again = open_tracker(store, run, tracker.run_id)
    again.log_params({"seed": 1, "train": {"workers": 3, "lr": 0.1}})
    again.log_results({"probe/linear": 0.5, "probe/knn": math.nan}, step=8)
    assert again.finish("FINISHED")
    assert again.run_id == tracker.run_id
    last = client.get_run(tracker.run_id)
    assert last.info.status == "FINISHED"
    assert last.data.tags["changed.train.workers"] == "3"
    assert history(client, tracker.run_id) == [(step, 0.5 if step < 6 else 0.25) for step in range(1, 9)]
    assert last.data.metrics[STEP_METRIC] == 8
    assert history(client, tracker.run_id, "probe/linear") == [(5, 0.5)]


def test_a_run_that_the_server_does_not_know_is_copied_anew(store: str, tmp_path: Path) -> None:
    said: list[str] = []
    write(tmp_path / "a", 1, [1, 2, 3])
    write(tmp_path / "a", 2, [3, 4])
    tracker = open_tracker(store, tmp_path / "a", "0" * 32, said)
    assert tracker.finish("FINISHED")
    assert tracker.run_id != "0" * 32
    assert history(connect(store), tracker.run_id) == [(step, 0.5) for step in (1, 2, 3, 4)]
    assert "does not know the run" in said[0]


def test_a_deleted_experiment_is_named(store: str, tmp_path: Path) -> None:
    client = connect(store)
    client.delete_experiment(client.create_experiment("tests"))
    with pytest.raises(UserError, match=r"tracking\.experiment=tests was deleted"):
        open_tracker(store, tmp_path / "a")


def test_a_new_run_is_refused_where_the_server_is_away(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9"):
        open_tracker("http://127.0.0.1:9", tmp_path / "a")


def test_flat_parameters_hold_no_secret_and_fit() -> None:
    flat = flatten(
        {
            "a": {"b": None, "c": [1, 2]},
            "uri": "http://me:pw@host/",
            "aws": {"Token": "x"},
            "mask_token": False,
            "long": "x" * 7000,
        }
    )
    assert {key: flat[key] for key in ("a.b", "a.c", "uri")} == {"a.b": "None", "a.c": "[1, 2]", "uri": "http://host/"}
    assert len(flat["long"]) == 6000
    assert set(flat) == {"a.b", "a.c", "uri", "mask_token", "long"}


class ServerProcess:
    """`mlflow server` on the loopback interface, which can be stopped and started again."""

    def __init__(self, store: str, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        self._words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        self._words += [
            "--workers",
            "1",
            "--backend-store-uri",
            store,
            "--artifacts-destination",
            str(folder / "served"),
        ]
        self._log = (folder / "server.log").open("a")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            self._words, env=environment, stdout=self._log, stderr=self._log, start_new_session=True
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail("mlflow server did not start: " + Path(self._log.name).read_text()[-1000:])

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.mark.slow
def test_a_server_that_goes_away_in_the_middle_of_a_run_gets_each_step_once(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    run = tmp_path / "a"
    server = ServerProcess(store, tmp_path)
    server.start()
    try:
        write(run, 1, range(1, 401))
        tracker = open_tracker(server.uri, run, said=said)
        client = connect(server.uri)
        deadline = time.monotonic() + 30
        while client.get_run(tracker.run_id).data.metrics.get(STEP_METRIC) != 400 and time.monotonic() < deadline:
            time.sleep(0.2)
        server.stop()
        write(run, 1, range(401, 801))
        deadline = time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            time.sleep(0.1)
        write(run, 1, range(801, 1001))
        server.start()
        assert tracker.finish("FINISHED", wait_seconds=60)
        assert history(client, tracker.run_id) == [(step, 0.5) for step in range(1, 1001)]
        assert client.get_run(tracker.run_id).info.status == "FINISHED"
        assert len(said) == 2, said

        server.stop()  # a resumed run does not need it: what is missing waits in the files
        write(run, 2, range(1001, 1011))
        assert not open_tracker(server.uri, run, tracker.run_id).finish("FINISHED", wait_seconds=0.5)
        server.start()
        assert open_tracker(server.uri, run, tracker.run_id).finish("FINISHED", wait_seconds=60)
        assert history(client, tracker.run_id) == [(step, 0.5) for step in range(1, 1011)]
    finally:
        server.stop()
