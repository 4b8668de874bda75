"""An MLflow server on this machine, as a process of its own: a database, and artifacts that only the server touches."""

import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.object_store import free_ports
from cluster.server_process import ServerProcess

_ENVIRONMENT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes that run what clients send
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
}


@dataclass(frozen=True, kw_only=True)
class MlflowServer:
    """A tracking server and registry; `server` stops it, and starts it again, same port and same database."""

    uri: str
    server: ServerProcess

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs so that it tracks here."""
        return {"MLFLOW_TRACKING_URI": self.uri, "MLFLOW_DISABLE_TELEMETRY": "true"}


@contextmanager
def mlflow_server(
    folder: Path, *, artifacts: str | None = None, environment: Mapping[str, str] | None = None
) -> Generator[MlflowServer]:
    """Start a server with its database in `folder`, and stop it at the end.

    Args:
        folder: for `mlflow.db` and the log.
        artifacts: where the server keeps what clients send it, a folder or `s3://…`; default: in `folder`.
        environment: what the server needs besides to reach that place. Clients do not need it.

    Raises:
        RuntimeError: it did not come up; the message names its log.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    uri = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1"),
        *(f"--backend-store-uri=sqlite:///{folder}/mlflow.db",),
        *(f"--artifacts-destination={artifacts or folder / 'artifacts'}",),
    ]
    server = ServerProcess(
        name="the MLflow server",
        command=command,
        url=f"{uri}/health",
        log=folder / "mlflow.log",
        environment={**os.environ, **_ENVIRONMENT, **(environment or {})},
    )
    try:
        server.start()
        yield MlflowServer(uri=uri, server=server)
    finally:
        server.stop()
