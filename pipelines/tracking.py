"""A run's copy in MLflow, kept by the driver alone: parameters, tags, metrics, artifacts, and how it ended.

Workers never import MLflow. They append lines to the run's `metrics/`, and `pipelines.forwarding` copies them from a
thread, which also makes every other call to the server once the run has begun: a server that goes away costs nothing.

How no step is doubled: a line's metrics are sent in one transaction together with a metric `logged_step`, whose latest
value is therefore the last step that MLflow has; lines up to it are left out. Times are the line's own, so that a batch
sent again because its answer was lost is the same batch, which MLflow keeps once.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pipelines.forwarding import Forwarder, MetricLine, MetricsTail, Refused
from pipelines.mlflow_connection import (
    artifact_root,
    check_reachable,
    connect,
    masked,
    place,
    plain_errors,
    tracking_uri,
)
from ssl_core.errors import UserError
from ssl_core.storage.s3 import is_s3

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Dataset", "Status", "Tracker", "TrackingConfig", "check_reachable", "flatten", "tracking_uri"]

Status = Literal["FINISHED", "FAILED", "KILLED"]
STEP_METRIC = "logged_step"
PARENT_TAG = "mlflow.parentRunId"
_PARAMETER_CHARACTERS = 6000
_PARAMETERS_A_CALL = 100
_DIGEST_CHARACTERS = 36  # what MLflow keeps of a data set's
_SECRET_WORDS = ("secret", "password", "token", "credential", "access_key")
_HOPELESS = (
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Which MLflow, and which experiment there."""

    uri: str | None = None
    experiment: str = "ssl-pipelines"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a run reads, as MLflow shows it."""

    name: str  # what for
    digest: str
    place: str
    facts: Mapping[str, int]


class Tracker:
    """One run in MLflow, made by `Tracker.open`; after that only `finish` waits for the server, and not for long."""

    def __init__(self, client: "MlflowClient", run_id: str, metrics: Path, say: Callable[[str], None]) -> None:
        self.run_id = run_id
        self._client = client
        self._forwarder = Forwarder(MetricsTail(metrics), _MlflowRun(client, run_id), say=say)
        self._forwarder.start()

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        config: TrackingConfig,
        run_name: str,
        run_folder: Path,
        run_id: str | None = None,
        parent: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> "Tracker":
        """Start a run in MLflow, or go on with one, and begin to copy `<run_folder>/metrics/`.

        Args:
            uri: from `tracking_uri`.
            config: the experiment.
            run_name: what to call the run.
            run_folder: `<storage>/<name>`.
            run_id: the run's id of an earlier command. With it, a server that is away is no error: the copy waits for
                it. A run that this server does not know is started anew, and gets the whole record.
            parent: the run in MLflow that a new one becomes a child of.
            say: called with one line when the server goes away or comes back; default: standard error.

        Returns:
            The tracker; its `run_id` is to be kept with the run.

        Raises:
            UserError: a new run, and the server is away.
        """
        say = say or _to_stderr
        away = _away(uri, patience_seconds=5.0 if run_id is None else 1.0)
        if away is not None and run_id is None:
            raise away
        client = connect(uri)
        if away is not None and run_id is not None:
            return cls(client, run_id, run_folder / "metrics", say)
        with plain_errors(uri):
            known = run_id if run_id is not None and _reopen(client, run_id) else None
            if known is None:
                if run_id is not None:
                    say(f"{place(uri)} does not know the run {run_id}: starting a new one and copying all metrics")
                experiment = experiment_id(client, config.experiment, artifact_root(uri, run_folder.parent))
                tags = None if parent is None else {PARENT_TAG: parent}
                known = client.create_run(experiment, run_name=run_name, tags=tags).info.run_id
        return cls(client, known, run_folder / "metrics", say)

    def log_params(self, config: Mapping[str, Any]) -> None:
        """Log a nested configuration as flat parameters, those that are new; a parameter keeps its first value.

        A value that differs from the first one (workers of a resumed run, say) becomes a tag `changed.<key>`.
        """
        self._submit(lambda: _log_params(self._client, self.run_id, flatten(config)))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, over what they were."""
        kept = dict(tags)
        self._submit(lambda: _set_tags(self._client, self.run_id, kept))

    def log_results(self, results: Mapping[str, float], *, step: int) -> None:
        """Log numbers that the run has one of (the probe's): again only where they differ."""
        kept = dict(results)
        self._submit(lambda: _log_results(self._client, self.run_id, kept, step))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a small file to the run's artifacts."""
        self._submit(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def log_json(self, content: Mapping[str, Any], path: str) -> None:
        """Write JSON values to the run's artifacts; `path` ends with .json or .yaml, and says which it becomes."""
        kept = dict(content)
        self._submit(lambda: self._client.log_dict(self.run_id, kept, path))

    def log_datasets(self, datasets: Sequence[Dataset]) -> None:
        """Name what the run reads; again is no error."""
        kept = list(datasets)
        self._submit(lambda: _log_datasets(self._client, self.run_id, kept))

    def flush(self, *, wait_seconds: float = 30.0) -> bool:
        """Wait until MLflow has all so far; whether it has, within `wait_seconds`."""
        return self._forwarder.flush(wait_seconds=wait_seconds)

    def finish(self, status: Status, *, wait_seconds: float = 30.0) -> bool:
        """Send what is left, set the run's final status, and stop.

        Returns:
            Whether MLflow has everything; otherwise the run's files have, and the next `open` of this run sends it.
        """

        def terminate() -> None:
            with _refusals():
                self._client.set_terminated(self.run_id, status)

        return self._forwarder.finish(terminate, wait_seconds=wait_seconds)

    def _submit(self, call: Callable[[], None]) -> None:
        def checked() -> None:
            with _refusals():
                call()

        self._forwarder.submit(checked)


class _MlflowRun:
    """The forwarder's destination."""

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def last_step(self) -> int:
        with _refusals():
            metrics = self._client.get_run(self._run_id).data.metrics
        return int(metrics.get(STEP_METRIC, -1))

    def send(self, lines: Sequence[MetricLine]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, line.time_ms, line.step)
            for line in lines
            for key, value in {**line.values, STEP_METRIC: float(line.step)}.items()
        ]
        with _refusals():
            self._client.log_batch(self._run_id, metrics=metrics)


@contextmanager
def _refusals() -> Generator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        text = masked(" ".join(str(error).split()))
        if error.error_code in _HOPELESS:
            raise Refused(text[:250]) from error
        raise ConnectionError(text[:250]) from error


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as `{"train.steps": "100"}`: no secrets, no passwords in URLs, nothing too long."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(cast(Mapping[str, Any], value), f"{name}.")
        elif not (isinstance(value, str) and any(word in str(key).lower() for word in _SECRET_WORDS)):
            text = masked(str(value))
            flat[name] = text if len(text) <= _PARAMETER_CHARACTERS else text[: _PARAMETER_CHARACTERS - 1] + "…"
    return flat


def _log_params(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    known = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in params.items() if key not in known]
    for start in range(0, len(new), _PARAMETERS_A_CALL):
        client.log_batch(run_id, params=new[start : start + _PARAMETERS_A_CALL])
    changed = {f"changed.{key}": value for key, value in params.items() if known.get(key, value) != value}
    _set_tags(client, run_id, changed)


def _set_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    if tags:
        client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])


def _log_results(client: "MlflowClient", run_id: str, results: Mapping[str, float], step: int) -> None:
    from mlflow.entities import Metric

    known = client.get_run(run_id).data.metrics
    now = time.time_ns() // 1_000_000
    new = [Metric(key, value, now, step) for key, value in results.items() if not _same(known.get(key), value)]
    if new:
        client.log_batch(run_id, metrics=new)


def _log_datasets(client: "MlflowClient", run_id: str, datasets: Sequence[Dataset]) -> None:
    from mlflow.entities import Dataset as MlflowDataset
    from mlflow.entities import DatasetInput, InputTag

    inputs: list[DatasetInput] = []
    for one in datasets:
        source = json.dumps({"uri": masked(one.place)})
        kind, digest, facts = (
            "s3" if is_s3(one.place) else "local",
            one.digest[:_DIGEST_CHARACTERS],
            json.dumps(one.facts),
        )
        data = MlflowDataset(Path(one.place).name or one.name, digest, kind, source, profile=facts)
        inputs.append(DatasetInput(data, [InputTag("mlflow.data.context", one.name)]))
    client.log_inputs(run_id, inputs)


def _same(known: float | None, value: float) -> bool:
    return known is not None and (known == value or (math.isnan(known) and math.isnan(value)))


def _reopen(client: "MlflowClient", run_id: str) -> bool:
    """Set an earlier run to running; False where there is none, or it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        if client.get_run(run_id).info.lifecycle_stage == "active":
            client.update_run(run_id, status="RUNNING")
            return True
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    return False


def experiment_id(client: "MlflowClient", name: str, artifacts: str | None) -> str:
    """The experiment's id; made where it does not exist."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:  # somebody else was faster
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(f"tracking.experiment={name} was deleted in MLflow: restore it there, or name another one")
    return found.experiment_id


def _away(uri: str, *, patience_seconds: float) -> UserError | None:
    try:
        check_reachable(uri, patience_seconds=patience_seconds)
    except UserError as error:
        return error
    return None


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
