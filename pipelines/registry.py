"""Registered models: versions with their tags, the gate that moves `champion`, promotion by hand.

A registration writes the version with its tags, then sets the alias to what `pipelines.gate` computes from all versions' tags,
then reads again, until both agree. Two registrations at once therefore end with the same champion, whoever comes last.

Tags of a version: `run`, `mlflow_run`, `export` (digest), `manifest` (digest), `probe.data` (digest), `probe.<metric>` and
`probe.<metric>.error` as shares, `promoted` (when, by hand), `champion_before` (the version that it took over from).
"""

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.finished_run import FinishedRun, read_finished_run
from pipelines.gate import Entry, Promotion, champion, verdict
from pipelines.mlflow_connection import artifact_root, check_reachable, connect, plain_errors
from ssl_core.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
METRIC = "linear"
_PROMOTION_TAG = "promotion"
_ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a registered model."""

    number: int
    created: datetime
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    model_id: str | None

    def probe(self) -> dict[str, tuple[float, float]]:
        """The probe's numbers with their standard errors, as shares."""
        numbers: dict[str, tuple[float, float]] = {}
        for tag, text in self.tags.items():
            if tag.startswith("probe.") and tag != "probe.data" and not tag.endswith(".error"):
                numbers[tag.removeprefix("probe.")] = (float(text), float(self.tags.get(f"{tag}.error", "nan")))
        return numbers

    def entry(self, metric: str) -> Entry:
        """What the gate wants to know."""
        value, error = self.probe().get(metric, (None, None))
        known = None if error is None or math.isnan(error) else error
        return Entry(version=self.number, data=self.tags.get("probe.data"), value=value, error=known)


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


def checked_name(model: str) -> str:
    """The name, if MLflow takes it and it fits into `models:/<name>@<alias>`; raises UserError."""
    if not re.fullmatch(r"[\w][\w .\-]*", model):
        raise UserError(f"model={model} cannot be a model's name: use letters, digits, '-', '_', '.' and spaces")
    return model


def register_run(run_folder: Path, model: str, uri: str, *, metric: str = METRIC) -> Registration:
    """Register the exported encoder of a finished run, and let the gate decide about `champion`.

    The same export is registered once: again gives the version that there is, with its tags brought up to date.

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

    from ssl_core.export import export_digest, verify_export

    verify_export(run.export)
    tags = _tags(run, export_digest(run.export))
    client = connect(uri)
    with plain_errors(uri):
        known = [one for one in versions(client, model, missing_ok=True) if one.tags.get("export") == tags["export"]]
        number = (
            known[0].number
            if known
            else _create_version(client, run, model, tags, artifact_root(uri, run_folder.parent))
        )
        for key, value in tags.items() if known else ():
            client.set_model_version_tag(model, str(number), key, value)
        everyone = settle(client, model, metric)
        return _outcome(client, model, everyone, number, metric, new=not known)


def versions(client: "MlflowClient", model: str, *, missing_ok: bool = False) -> list[Version]:
    """All versions of a model in the order of their numbers.

    Raises:
        UserError: there is no such model, unless `missing_ok`.
    """
    from mlflow.exceptions import MlflowException

    try:
        aliases: dict[str, str] = client.get_registered_model(checked_name(model)).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        if missing_ok:
            return []
        raise UserError(f"there is no registered model {model}: python -m pipelines.models lists them") from error
    found: list[Version] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name='{model}'", page_token=token)
        for one in page:
            number = int(one.version)
            names = tuple(sorted(alias for alias, target in aliases.items() if int(target) == number))
            created = datetime.fromtimestamp(one.creation_timestamp / 1000, UTC)
            model_id = one.model_id or _model_id(one.source)
            found.append(Version(number=number, created=created, tags=one.tags, aliases=names, model_id=model_id))
        token = page.token
        if not token:
            return sorted(found, key=lambda version: version.number)


def settle(client: "MlflowClient", model: str, metric: str) -> list[Version]:
    """Set `champion` to what the gate says until it stays there; the versions as they are then."""
    for _ in range(_ROUNDS):
        everyone = versions(client, model)
        best = champion([one.entry(metric) for one in everyone], promotion(client, model))
        present = next((one.number for one in everyone if CHAMPION in one.aliases), None)
        if best is None or best.version == present:
            return everyone
        if present is not None:
            client.set_model_version_tag(model, str(best.version), "champion_before", str(present))
        client.set_registered_model_alias(model, CHAMPION, str(best.version))
    raise OSError(f"models:/{model}@{CHAMPION} keeps changing under other registrations: register again")


def promote(client: "MlflowClient", model: str, number: int) -> str:
    """Make a version the champion by hand: from now on only versions registered later are judged against it.

    Raises:
        UserError: there is no such model or version.
    """
    everyone = versions(client, model)
    chosen = find_version(everyone, model, number)
    present = next((one.number for one in everyone if CHAMPION in one.aliases), None)
    client.set_model_version_tag(model, str(number), "promoted", datetime.now(UTC).isoformat(timespec="seconds"))
    client.set_registered_model_tag(model, _PROMOTION_TAG, f"{number}/{everyone[-1].number}")
    client.set_registered_model_alias(model, CHAMPION, str(number))
    if CHALLENGER in chosen.aliases:
        client.delete_registered_model_alias(model, CHALLENGER)
    if present == number:
        return f"models:/{model}/{number} was the champion already, and is now by hand"
    if present is not None:
        client.set_model_version_tag(model, str(number), "champion_before", str(present))
    return f"models:/{model}/{number} is the champion by hand" + (f", in place of version {present}" if present else "")


def roll_back(client: "MlflowClient", model: str) -> str:
    """Promote the version that was the champion before the present one; raises UserError where there was none."""
    present = next((one for one in versions(client, model) if CHAMPION in one.aliases), None)
    if present is None:
        raise UserError(f"model {model} has no champion to roll back")
    before = present.tags.get("champion_before")
    if before is None:
        raise UserError(f"version {present.number} is the first champion of {model}: there is none to go back to")
    return promote(client, model, int(before))


def promotion(client: "MlflowClient", model: str) -> Promotion | None:
    """The last promotion by hand."""
    text = client.get_registered_model(model).tags.get(_PROMOTION_TAG)
    if text is None:
        return None
    number, highest = text.split("/")
    return Promotion(version=int(number), highest=int(highest))


def find_version(everyone: Sequence[Version], model: str, number: int) -> Version:
    """One of the versions by its number; raises UserError where it is not there."""
    for one in everyone:
        if one.number == number:
            return one
    there = ", ".join(str(one.number) for one in everyone) or "none"
    raise UserError(f"model {model} has no version {number}: there are {there}")


def _tags(run: FinishedRun, export: str) -> dict[str, str]:
    tags = {"run": run.name, "export": export, "manifest": run.manifest}
    if run.mlflow_run is not None:
        tags["mlflow_run"] = run.mlflow_run
    if run.probe is not None:
        tags["probe.data"] = run.probe.data
        for metric, value in run.probe.values.items():
            tags[f"probe.{metric}"] = repr(value)
            tags[f"probe.{metric}.error"] = repr(run.probe.errors[metric])
    return tags


def _create_version(
    client: "MlflowClient", run: FinishedRun, model: str, tags: dict[str, str], artifacts: str | None
) -> int:
    """Log the exported folder as an MLflow model and make a version of it."""
    from mlflow.exceptions import MlflowException

    source_run, experiment = _origin(client, run, artifacts)
    logged = client.create_logged_model(experiment, name=model.replace(" ", "-"), source_run_id=source_run, tags=tags)
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
    made = client.create_model_version(model, source, run_id=source_run, tags=tags, model_id=logged.model_id)
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
            client.set_registered_model_alias(model, CHALLENGER, str(number))
        alias = CHALLENGER if number >= challenger else None
    return Registration(model=model, version=number, new=new, alias=alias, reason=reason)


def _model_id(source: str | None) -> str | None:
    found = re.fullmatch(r"models:/(m-[0-9a-f]+)", source or "")
    return found[1] if found else None
