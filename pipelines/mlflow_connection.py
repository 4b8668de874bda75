"""Where the MLflow server or store is, whether it answers, and a client for it.

Finding out costs no import of MLflow (4 s); `connect` does, and sets what MLflow reads from the environment first:
short time limits, no telemetry, no chatter.
"""

import logging
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import SplitResult, urlsplit, urlunsplit

from ssl_core.errors import Unavailable, UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

URI_VARIABLE = "MLFLOW_TRACKING_URI"
DEFAULT_STORAGE = "runs"
_SECRET_PARAMETER = re.compile(r"(?i)([?&][^=&\s]*(?:password|passwd|secret|token)[^=&\s]*=)[^&\s]+")
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_ENVIRONMENT = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",  # it asks a package index
    "MLFLOW_UV_AUTO_DETECT": "false",  # it copies the lock file of whatever project the command runs in
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


@dataclass(frozen=True, kw_only=True)
class RegistryPlace:
    """Keys below `tracking` of the commands that use the registry."""

    uri: str | None

    def words(self, storage: str) -> str:
        """What to repeat on the command line to reach the same registry; nothing where the defaults do."""
        uri = f" tracking.uri={masked(self.uri)}" if self.uri else ""
        return uri + (f" storage={storage}" if storage != DEFAULT_STORAGE and not self.uri else "")


def tracking_uri(uri: str | None, storage: str | Path = DEFAULT_STORAGE) -> str:
    """The MLflow server or store in use: the named one, else `$MLFLOW_TRACKING_URI`, else sqlite in the storage folder.

    Raises:
        UserError: MLflow's SQL and HTTP stores are meant, and this is neither.
    """
    named = uri or os.environ.get(URI_VARIABLE) or f"sqlite:///{Path(storage).expanduser().resolve() / 'mlflow.db'}"
    scheme = urlsplit(named).scheme.partition("+")[0]
    if scheme not in ("http", "https", "sqlite", *_DATABASE_PORTS):
        raise UserError(
            f"tracking.uri={masked(named)}: use http(s)://host:port, sqlite:///path/mlflow.db or a database's URI"
        )
    return named


def artifact_root(uri: str, storage: str | Path = DEFAULT_STORAGE) -> str | None:
    """Where artifacts go if no server decides it: `mlartifacts` beside the sqlite file, else in the storage folder."""
    if urlsplit(uri).scheme in ("http", "https"):
        return None
    database = sqlite_path(uri)
    folder = database.parent if database else Path(storage).expanduser().resolve()
    return str(folder / "mlartifacts")


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite store, as an absolute path; None for other stores."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve()


def masked(text: str) -> str:
    """The text without the user names and passwords of URLs in it."""
    return _SECRET_PARAMETER.sub(r"\1…", re.sub(r"(?<=://)[^/@\s]*@", "", text))


def without_passwords(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as it may be written down and sent to workers: its texts are `masked`, at any depth."""
    return {name: _masked_value(value) for name, value in values.items()}


def _masked_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return without_passwords(cast(Mapping[str, Any], value))
    if isinstance(value, list | tuple):
        return [_masked_value(one) for one in cast(Sequence[Any], value)]
    return masked(value) if isinstance(value, str) else value


def check_reachable(uri: str, *, patience_seconds: float = 5.0) -> None:
    """Make sure that the server or store answers, within 10 s.

    Raises:
        Unavailable: it does not; names host and port.
    """
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite"):
        return _check_folder(uri)
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return _knock(parts)
        except (OSError, ValueError) as error:
            if time.monotonic() >= deadline:
                reason = getattr(error, "reason", None) or error
                raise Unavailable(
                    f"the tracking server at {place(uri)} does not answer ({reason}): start it, or set tracking.uri=…"
                ) from error
        time.sleep(min(1.0, patience_seconds / 4))


def place(uri: str) -> str:
    """What to call a server or store in a message: host:port, or the file's path."""
    parts = urlsplit(uri)
    return parts.netloc.rpartition("@")[2] if parts.netloc else masked(uri)


def _check_folder(uri: str) -> None:
    database = sqlite_path(uri)
    folder = database.parent if database else Path.cwd()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"tracking.uri={uri}: cannot make the folder {folder}: {error.strerror}") from error


def _knock(parts: SplitResult) -> None:
    """One try: GET /health of an MLflow server, or a connection to a database's port."""
    host = parts.hostname or "localhost"
    if parts.scheme not in ("http", "https"):
        port = parts.port or _DATABASE_PORTS[parts.scheme.partition("+")[0]]
        socket.create_connection((host, port), timeout=4.0).close()
        return
    netloc = parts.netloc.rpartition("@")[2]  # urllib does not take user:password@
    url = urlunsplit((parts.scheme, netloc, f"{parts.path.rstrip('/')}/health", "", ""))
    try:
        urllib.request.urlopen(url, timeout=4.0, context=_tls(parts.scheme)).close()
    except urllib.error.HTTPError as error:
        hint = ", is its --allowed-hosts right?" if error.code == 403 else ""
        raise OSError(f"GET /health gave status {error.code}{hint}") from error


def _tls(scheme: str) -> ssl.SSLContext | None:
    """The certificates that MLflow's own client would use."""
    if scheme != "https":
        return None
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def prepare_environment() -> None:
    """Set what MLflow reads from the environment, where the user has not; to be called before MLflow is imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)


def connect(uri: str) -> "MlflowClient":
    """A client for tracking and registry at `uri`; leaves MLflow's process-wide URIs alone."""
    prepare_environment()
    from mlflow import MlflowClient

    with plain_errors(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def process_wide(uri: str) -> Generator[None]:
    """Within: `uri` is MLflow's process-wide store too, which SQL stores ask for the files of `models:/m-…`."""
    import mlflow

    variable = os.environ.get(URI_VARIABLE)
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(cast(str, before))  # None is right and unsets it
        os.environ.pop(URI_VARIABLE, None)
        if variable is not None:
            os.environ[URI_VARIABLE] = variable


@contextmanager
def plain_errors(uri: str) -> Generator[None]:
    """Turn what MLflow raises into one line: OSError, since the command's input was right."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = masked(" ".join(str(error).split()))[:250]
        raise OSError(f"MLflow at {place(uri)}: {reason}") from error
