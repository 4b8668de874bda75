"""Which store is meant, and whether it answers: found out without MLflow, in time, and said in one line."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from pipelines.mlflow_connection import (
    URI_VARIABLE,
    artifact_root,
    check_reachable,
    masked,
    place,
    prepare_environment,
    tracking_uri,
    without_passwords,
)
from ssl_core.errors import UserError


def test_the_named_store_goes_before_the_environment_and_that_before_sqlite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(URI_VARIABLE, raising=False)
    assert tracking_uri(None, "runs") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert artifact_root(tracking_uri(None, "runs")) == f"{tmp_path}/runs/mlartifacts"
    monkeypatch.setenv(URI_VARIABLE, "http://tracker:5000")
    assert tracking_uri(None, "runs") == "http://tracker:5000"
    assert tracking_uri("sqlite:///other.db", "runs") == "sqlite:///other.db"
    assert artifact_root("http://tracker:5000") is None
    assert artifact_root("postgresql://db/mlflow", "runs") == f"{tmp_path}/runs/mlartifacts"


@pytest.mark.parametrize("uri", ["runs/mlflow", "file:///tmp/mlruns", "tracker:5000", "ftp://u:secret@host/x"])
def test_what_mlflow_cannot_use_is_refused_without_its_password(uri: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.uri=") as caught:
        tracking_uri(uri)
    assert "secret" not in str(caught.value)


def test_passwords_are_left_out_of_messages() -> None:
    assert masked("see http://me:pw@host:5000/x and s3://bucket/a@b") == "see http://host:5000/x and s3://bucket/a@b"
    assert (
        masked("postgresql://host/db?user=me&password=pw&sslmode=on")
        == "postgresql://host/db?user=me&password=…&sslmode=on"
    )


def test_a_configuration_is_written_down_without_the_password() -> None:
    values = {"seed": 1, "tracking": {"uri": "http://me:pw@host:5000", "experiment": "e"}}
    assert without_passwords(values) == {"seed": 1, "tracking": {"uri": "http://host:5000", "experiment": "e"}}
    assert without_passwords({"tracking": {"uri": None}}) == {"tracking": {"uri": None}}
    assert values["tracking"] == {"uri": "http://me:pw@host:5000", "experiment": "e"}
    assert place("http://me:pw@host:5000/x") == "host:5000"


def test_passwords_are_left_out_of_a_configuration_at_any_depth() -> None:
    values = {"a": {"uri": "http://me:pw@host", "list": ["s3://b/c", ("http://me:pw@x",)]}, "steps": 3, "none": None}
    assert without_passwords(values) == {
        "a": {"uri": "http://host", "list": ["s3://b/c", ["http://x"]]},
        "steps": 3,
        "none": None,
    }


class _Health(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/prefix/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def server() -> Generator[str]:
    made = http.server.HTTPServer(("127.0.0.1", 0), _Health)
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://me:pw@127.0.0.1:{made.server_port}/prefix/"
    made.shutdown()
    made.server_close()


def test_a_server_that_answers_is_fine(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_reachable(server)
    monkeypatch.setattr(_Health, "status", 403)
    with pytest.raises(UserError, match="allowed-hosts"):
        check_reachable(server, patience_seconds=0)


@pytest.mark.parametrize("scheme", ["http", "https", "postgresql+psycopg2"])
def test_a_closed_port_is_named_within_ten_seconds(scheme: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        begin = time.monotonic()
        with pytest.raises(UserError, match=rf"127\.0\.0\.1:{port} does not answer") as caught:
            check_reachable(f"{scheme}://me:pw@127.0.0.1:{port}/mlflow", patience_seconds=0.2)
    assert time.monotonic() - begin < 10
    assert "\n" not in str(caught.value)
    assert "pw" not in str(caught.value)


def test_a_server_that_accepts_and_says_nothing_is_given_up_within_ten_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        with pytest.raises(UserError, match="does not answer"):
            check_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}", patience_seconds=1.0)
        assert time.monotonic() - begin < 10


def test_sqlite_needs_a_folder_that_can_be_made(tmp_path: Path) -> None:
    check_reachable(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert (tmp_path / "new").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot make the folder"):
        check_reachable(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_the_users_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    prepare_environment()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_asking_whether_a_server_is_there_does_not_import_mlflow() -> None:
    code = (
        "import sys, pipelines.tracking as t\n"
        "try: t.check_reachable(t.tracking_uri('http://127.0.0.1:9'), patience_seconds=0)\n"
        "except ValueError as error: print(error)\n"
        "print([name for name in sys.modules if name.startswith(('mlflow', 'torch', 'ray'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "127.0.0.1:9" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
