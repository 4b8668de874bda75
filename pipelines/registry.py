"""Into the registry and out of it: register a run's exported encoder, pull a registered one.

A registration writes the version with its tags, then sets `champion` to what `pipelines.gate` computes from all
versions' tags, then reads again, until both agree. So two registrations at once end with the same champion.
"""

import hashlib
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.finished_run import EXPORT, FinishedRun, read_finished_run
from pipelines.gate import verdict
from pipelines.mlflow_connection import artifact_root, check_reachable, connect, plain_errors, process_wide, sqlite_path
from pipelines.model_versions import (
    CHALLENGER,
    CHAMPION,
    Version,
    checked_name,
    find_version,
    insist,
    promotion,
    settle,
    versions,
)
from ssl_core.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipelines.pull_formats import Format

METRIC = "linear"
_DESCRIPTION_CHARACTERS = 5000  # what MLflow's databases take


@dataclass(frozen=True, kw_only=True)
class Registration:
    """What became of a registration."""

    model: str
    version: int
    new: bool
    alias: str | None
    reason: str

    def __str__(self) -> str:
        name = f"models:/{self.model}/{self.version}"
        what = f"registered {name}" if self.new else f"{name} is this run's version already"
        return f"{what}: {self.alias or 'no alias'}, because {self.reason}"


def register_run(run_folder: Path, model: str, uri: str, *, metric: str = METRIC) -> Registration:
    """Register the exported encoder of a finished run, and let the gate decide about `champion`.

    The same weights are registered once: again gives the version that there is, with its tags brought up to date.

    Args:
        run_folder: `<storage>/<name>`.
        model: the registered model's name; made where it does not exist.
        uri: tracking server and registry.
        metric: the probe's number that the gate compares.

    Raises:
        UserError: no such run, not finished, damaged, or without this number in its probe; or nobody answers at `uri`.
    """
    checked_name(model)
    run = read_finished_run(run_folder)
    if run.probe is not None and metric not in run.probe.values:
        raise UserError(f"metric={metric} is not in the probe of run {run.name}: it has {', '.join(run.probe.values)}")
    check_reachable(uri)

    tags = _tags(run)
    client = connect(uri)
    with plain_errors(uri):
        known = [one for one in versions(client, model, missing_ok=True) if one.tags.get("weights") == tags["weights"]]
        if known:
            number = known[0].number
            for key, value in tags.items():
                if key != "export":  # what the registry holds stays as it is
                    insist(client.set_model_version_tag, model, str(number), key, value)
            client.update_model_version(model, str(number), _description(run))
        else:
            number = _create_version(client, run, model, tags, uri)
        everyone = settle(client, model, metric)
        return _outcome(client, model, everyone, number, metric, new=not known)


def open_registry(uri: str) -> "MlflowClient":
    """A client for a registry that is read only; raises UserError where there is none."""
    database = sqlite_path(uri)
    if database is not None and not database.is_file():
        raise UserError(f"there are no registered models: {database} does not exist, name tracking.uri= or storage=")
    check_reachable(uri)
    return connect(uri)


def resolve(model_uri: str, uri: str) -> tuple["MlflowClient", str, Version]:
    """The client, the model's name and the version that `models:/<name>@<alias>` or `models:/<name>/<number>` means.

    Raises:
        UserError: it cannot be read, or there is no such model, alias or version.
    """
    parts = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model_uri)
    if parts is None:
        raise UserError(f"model={model_uri}: write models:/<name>@champion or models:/<name>/<version>")
    name, alias, number = parts.groups()
    try:
        client = open_registry(uri)
    except UserError as error:
        raise UserError(f"{model_uri} cannot be had: {error}") from error
    with plain_errors(uri):
        everyone = versions(client, name)
    if number is not None:
        return client, name, find_version(everyone, name, int(number))
    for one in everyone:
        if alias in one.aliases:
            return client, name, one
    known = sorted({f"@{other}" for one in everyone for other in one.aliases} | {f"/{one.number}" for one in everyone})
    raise UserError(f"{model_uri}: model {name} has no alias {alias}; there are {', '.join(known[:12])}")


def pull_model(model_uri: str, to: Path, uri: str, *, form: "Format" = "safetensors") -> Path:
    """Download a registered encoder and verify it.

    Args:
        model_uri: see `resolve`.
        to: the folder that it becomes; where it holds this very model already, nothing is done.
        uri: the registry.
        form: what it becomes; see `pipelines.pull_formats`.

    Returns:
        `to`, which `ssl_core.export.load_encoder` reads where the form is safetensors.

    Raises:
        UserError: there is no such model, `to` holds something else, the files are not what was registered, or the
            encoder cannot have this form.
        OSError: the files cannot be had.
    """
    client, name, version = resolve(model_uri, uri)

    from pipelines.pull_formats import convert, holds

    what = f"models:/{name}/{version.number}"
    digest = version.tags.get("export")
    if digest is None or version.model_id is None:
        raise UserError(f"{what} was not registered by these pipelines: it has no checksums to verify it by")
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        if holds(to, digest, form):
            return to
        raise UserError(f"to={to} exists and is not {what} as format={form}: name another folder")
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(f".{to.name}.{uuid.uuid4().hex}.partial")
    try:
        with plain_errors(uri):
            _download(client, version.model_id, temporary, uri)
        made = temporary / EXPORT
        if not holds(made, digest, "safetensors"):
            raise UserError(f"{what}: the files in the registry are damaged, they differ from what was registered")
        if form != "safetensors":
            made = temporary / form
            convert(temporary / EXPORT, made, form, version=what)
        made.rename(to)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return to


def _download(client: "MlflowClient", model_id: str, folder: Path, uri: str) -> None:
    """The exported folder as `<folder>/export`; by location: `models:/` would ask the process-wide registry."""
    from mlflow.artifacts import download_artifacts

    location = client.get_logged_model(model_id).artifact_location
    download_artifacts(artifact_uri=f"{location}/data/{EXPORT}", dst_path=str(folder), tracking_uri=uri)


def _tags(run: FinishedRun) -> dict[str, str]:
    from ssl_core.export import export_digest, verify_export

    verify_export(run.export)
    tags = {"run": run.name, "manifest": run.manifest}
    tags |= {"export": export_digest(run.export), "weights": _weights_digest(run.export)}
    tags |= {"mlflow_run": run.mlflow_run} if run.mlflow_run is not None else {}
    tags |= {"code": run.code} if run.code is not None else {}
    if run.probe is not None:
        tags["probe.data"] = run.probe.data
        for metric, value in run.probe.values.items():
            tags[f"probe.{metric}"] = repr(value)
            tags[f"probe.{metric}.error"] = repr(run.probe.errors[metric])
    return tags


def _description(run: FinishedRun) -> str:
    """The model card, for the version's page."""
    from ssl_core.export import CARD

    card = (run.export / CARD).read_text(encoding="utf-8")
    return card if len(card) <= _DESCRIPTION_CHARACTERS else card[: _DESCRIPTION_CHARACTERS - 1] + "…"


def _weights_digest(folder: Path) -> str:
    """A name for the encoder itself: an export's digest without the model card, which a new probe rewrites."""
    from ssl_core.export import CHECKSUMS, CONFIG, WEIGHTS

    digests = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    return hashlib.sha256(f"{digests[WEIGHTS]} {digests[CONFIG]}".encode()).hexdigest()


def _create_version(client: "MlflowClient", run: FinishedRun, model: str, tags: dict[str, str], uri: str) -> int:
    """Log the exported folder as an MLflow model and make a version of it."""
    from mlflow.exceptions import MlflowException

    source_run, experiment = _origin(client, run, artifact_root(uri, run.folder.parent))
    logged = client.create_logged_model(experiment, name=model.replace(".", "-"), source_run_id=source_run, tags=tags)
    try:
        _upload(client, run, logged, source_run)
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{logged.model_id}"
    with process_wide(uri):
        made = client.create_model_version(
            model, source, run_id=source_run, tags=tags, description=_description(run), model_id=logged.model_id
        )
    return int(made.version)


def _origin(client: "MlflowClient", run: FinishedRun, artifacts: str | None) -> tuple[str | None, str]:
    """The run's id where this server knows it, and the experiment for the model."""
    from mlflow.exceptions import MlflowException

    from pipelines.tracking import TrackingConfig, experiment_id

    if run.mlflow_run is not None:
        try:
            return run.mlflow_run, client.get_run(run.mlflow_run).info.experiment_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return None, experiment_id(client, TrackingConfig().experiment, artifacts)


def _upload(client: "MlflowClient", run: FinishedRun, logged: Any, source_run: str | None) -> None:
    from mlflow.models import Model

    from pipelines.serving import save_flavour

    metadata = Model(artifact_path=logged.name, run_id=source_run, model_uuid=logged.model_id, model_id=logged.model_id)
    with tempfile.TemporaryDirectory() as folder:
        save_flavour(Path(folder) / "model", run.export, metadata)
        client.log_model_artifacts(logged.model_id, f"{folder}/model")


def _outcome(
    client: "MlflowClient", model: str, everyone: Sequence[Version], number: int, metric: str, *, new: bool
) -> Registration:
    """Set `challenger`, and say what the gate decided."""
    own = find_version(everyone, model, number)
    others = [one.entry(metric) for one in everyone if one is not own]
    reason = verdict(own.entry(metric), others, metric, promotion(client, model))
    alias: str | None = None
    if CHAMPION in own.aliases:
        alias = CHAMPION
        if CHALLENGER in own.aliases:
            client.delete_registered_model_alias(model, CHALLENGER)
    elif own.entry(metric).value is not None:
        challenger = max((one.number for one in everyone if CHALLENGER in one.aliases), default=0)
        if number > challenger:
            insist(client.set_registered_model_alias, model, CHALLENGER, str(number))
        alias = CHALLENGER if number >= challenger else None
    return Registration(model=model, version=number, new=new, alias=alias, reason=reason)
