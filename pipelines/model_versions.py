"""The versions of a registered model: their tags and aliases, and moving `champion` by the gate or by hand.

Tags of a version: `run`, `mlflow_run`, `code` (the commit); the digests `weights`, `export` (with the model card),
`manifest`, `probe.data`; `probe.<metric>` and `probe.<metric>.error` as shares; `promoted` (when, by hand),
`champion_before` (whom it took over from).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipelines.gate import Entry, Promotion, champion
from ssl_core.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER = "champion", "challenger"
_PROMOTION_TAG = "promotion"
_ROUNDS = 10
_WRITES = 3


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
                with suppress(ValueError):  # somebody else's tag
                    numbers[tag.removeprefix("probe.")] = (float(text), float(self.tags.get(f"{tag}.error", "nan")))
        return numbers

    def entry(self, metric: str) -> Entry:
        """What the gate wants to know."""
        value, error = self.probe().get(metric, (None, None))
        known = None if error is None or math.isnan(error) else error
        return Entry(version=self.number, data=self.tags.get("probe.data"), value=value, error=known)


def checked_name(model: str) -> str:
    """The name, if MLflow takes it and it fits into `models:/<name>@<alias>`; raises UserError."""
    if not re.fullmatch(r"\w[\w.\-]*", model):
        raise UserError(f"model={model} cannot be a model's name: use letters, digits, '-', '_' and '.'")
    return model


def versions(client: "MlflowClient", model: str, *, missing_ok: bool = False) -> list[Version]:
    """All versions of a model in the order of their numbers.

    Raises:
        UserError: there is no such model, unless `missing_ok`.
    """
    from mlflow.exceptions import MlflowException

    try:
        aliases: dict[str, str] = client.get_registered_model(model).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        if missing_ok:
            return []
        raise UserError(f"there is no registered model {model}: python -m pipelines.models lists them") from error
    found: list[Version] = []
    token: str | None = None
    while True:
        page = client.search_model_versions(f"name={_quoted(model)}", page_token=token)
        for one in page:
            number = int(one.version)
            names = tuple(sorted(alias for alias, target in aliases.items() if int(target) == number))
            created = datetime.fromtimestamp(one.creation_timestamp / 1000, UTC)
            model_id = one.model_id or _model_id(one.source)
            found.append(Version(number=number, created=created, tags=one.tags, aliases=names, model_id=model_id))
        token = page.token
        if not token:
            return sorted(found, key=lambda version: version.number)


def registered_names(client: "MlflowClient") -> list[str]:
    """The names of all registered models, sorted."""
    names: list[str] = []
    token: str | None = None
    while True:
        page = client.search_registered_models(page_token=token)
        names += [model.name for model in page]
        token = page.token
        if not token:
            return sorted(names)


def settle(client: "MlflowClient", model: str, metric: str) -> list[Version]:
    """Set `champion` to what the gate says until it stays there; the versions as they are then."""
    for _ in range(_ROUNDS):
        everyone = versions(client, model)
        best = champion([one.entry(metric) for one in everyone], promotion(client, model))
        present = next((one.number for one in everyone if CHAMPION in one.aliases), None)
        if best is None or best.version == present:
            return everyone
        if present is not None:
            insist(client.set_model_version_tag, model, str(best.version), "champion_before", str(present))
        insist(client.set_registered_model_alias, model, CHAMPION, str(best.version))
    raise OSError(f"models:/{model}@{CHAMPION} keeps changing under other registrations: register again")


def insist(write: Callable[..., None], *arguments: str) -> None:
    """Write a tag or an alias that somebody else may be writing at the same moment.

    MLflow looks whether the row is there and then inserts it, so of two writers its database refuses one, with
    BAD_REQUEST; the next time the row is there.
    """
    from mlflow.exceptions import MlflowException

    for left in reversed(range(_WRITES)):
        try:
            return write(*arguments)
        except MlflowException as error:
            if error.error_code != "BAD_REQUEST" or not left:
                raise
    return None


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


def _quoted(name: str) -> str:
    """For a filter: anybody's models are listed, whatever they are called."""
    return f'"{name}"' if "'" in name else f"'{name}'"


def _model_id(source: str | None) -> str | None:
    found = re.fullmatch(r"models:/(m-[0-9a-f]+)", source or "")
    return found[1] if found else None
