"""Versions of registered models side by side: probe numbers and their differences, and what else differs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.gate import gain_in_errors, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipelines.model_versions import Version

_SAY_NOTHING = ("name", "storage", "register", "plan")  # parameters that differ anyway


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A version, and the parameters of its run; none where the registry's server does not know the run."""

    name: str  # <model>/<number>
    version: "Version"
    parameters: Mapping[str, str]


def parameters_of(client: "MlflowClient", version: "Version") -> dict[str, str]:
    """The parameters of the run that a version comes from; none where this server does not have it."""
    from mlflow.exceptions import MlflowException

    run = version.tags.get("mlflow_run")
    if run is None:
        return {}
    try:
        return dict(client.get_run(run).data.params)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}


def comparison(compared: Sequence[Compared]) -> list[list[str]]:
    """Rows of cells: a name, a value a version, and what each version after the first differs by from the first."""
    first, *others = compared
    rows = [["", *(one.name for one in compared), *(f"{one.name} against {first.name}" for one in others)]]
    rows += [[name, *values, *[""] * len(others)] for name, values in _facts(compared).items()]
    for metric in dict.fromkeys(metric for one in compared for metric in one.version.probe()):
        entries = [one.version.entry(metric) for one in compared]
        numbers = ["-" if entry.value is None else shown(entry) for entry in entries]
        rows.append([metric, *numbers, *(_difference(first.version, one.version, metric) for one in others)])
    return rows + [[name, *values, *[""] * len(others)] for name, values in _other_parameters(compared).items()]


def _facts(compared: Sequence[Compared]) -> dict[str, list[str]]:
    versions = [one.version for one in compared]
    tags = {"run": "run", "code": "commit", "manifest": "trained on", "probe.data": "probed on"}
    facts = {
        "alias": [", ".join(one.aliases) or "-" for one in versions],
        "registered": [f"{one.created:%Y-%m-%d %H:%M}" for one in versions],
    }
    for tag, name in tags.items():
        short = 8 if tag in ("manifest", "probe.data") else None
        facts[name] = [one.tags.get(tag, "-")[:short] for one in versions]
    return facts


def _difference(first: "Version", other: "Version", metric: str) -> str:
    """In the gate's own terms: points, and whether they are more than one standard error, the larger of the two."""
    before, after = first.entry(metric), other.entry(metric)
    if before.value is None or after.value is None:
        return "-"
    if before.data != after.data:
        return "not comparable: other data"
    points = f"{100 * (after.value - before.value):+.2f}"
    return f"{points}, {'more than' if abs(gain_in_errors(after, before)) > 1 else 'within'} one standard error"


def _other_parameters(compared: Sequence[Compared]) -> dict[str, list[str]]:
    """The parameters whose values are not all the same."""
    if not all(one.parameters for one in compared):
        return {}
    names = dict.fromkeys(name for one in compared for name in one.parameters if name not in _SAY_NOTHING)
    found = {name: [one.parameters.get(name, "-") for one in compared] for name in names}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def unknown_runs(compared: Sequence[Compared]) -> list[str]:
    """The versions whose configuration cannot be compared."""
    return [one.name for one in compared if not one.parameters]
