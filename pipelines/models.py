"""The registered models: versions with alias, probe numbers, date and run; compared; promoted by hand, and back.

  python -m pipelines.models                            all models
  python -m pipelines.models model=my-encoder           its versions side by side
  python -m pipelines.models compare=my-encoder/1,my-encoder/3     numbers, their differences, what else differs
  python -m pipelines.models promote=my-encoder/3       make version 3 the champion by hand
  python -m pipelines.models rollback=my-encoder        the champion before the present one is it again

After a promotion by hand, only versions registered later can take the champion's place.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipelines.config import compose, typed
from pipelines.console import run_command, say
from pipelines.mlflow_connection import RegistryPlace, place, plain_errors, tracking_uri
from ssl_core.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipelines.model_versions import Version


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """`configs/models.yaml`."""

    model: str | None
    compare: str | tuple[str, ...] | None
    promote: str | None
    rollback: str | None
    storage: str
    tracking: RegistryPlace


def main(overrides: list[str]) -> None:
    """List, compare, promote, or roll back."""
    config = typed(ModelsConfig, compose("models", overrides))
    if sum(word is not None for word in (config.model, config.compare, config.promote, config.rollback)) > 1:
        raise UserError("give one of model=, compare=, promote= and rollback=")
    names = config.compare.split(",") if isinstance(config.compare, str) else config.compare
    if names is not None and len(names) < 2:
        raise UserError(
            f"compare={','.join(names)}: name two versions or more, such as compare=my-encoder/1,my-encoder/2"
        )
    chosen, _, number = (config.promote or "").rpartition("/")
    if config.promote is not None and not (chosen and number.isdecimal()):
        raise UserError(f"promote={config.promote}: write promote=<name>/<version>, such as promote=my-encoder/3")
    uri = tracking_uri(config.tracking.uri, config.storage)

    from pipelines.model_versions import promote, roll_back, versions
    from pipelines.registry import open_registry

    client = open_registry(uri)
    with plain_errors(uri):
        if config.promote is not None:
            say(promote(client, chosen, int(number)))
        elif names is not None:
            _compare([name.strip() for name in names], uri)
        elif config.rollback is not None:
            say(roll_back(client, config.rollback))
        elif config.model is not None:
            say(versions_table(versions(client, config.model)))
        else:
            _list_models(client, uri)


def versions_table(versions: Sequence["Version"]) -> str:
    """The versions of a model side by side; numbers of the probe in percent with their standard errors."""
    metrics = list(dict.fromkeys(metric for one in versions for metric in one.probe()))
    head = ["version", "alias", "registered", "run", *metrics, "probed on"]
    rows = [head]
    for one in versions:
        numbers = one.probe()
        cells = [f"{100 * numbers[m][0]:.2f} ± {100 * numbers[m][1]:.2f}" if m in numbers else "-" for m in metrics]
        alias = ", ".join(one.aliases) + (" (by hand)" if "champion" in one.aliases and "promoted" in one.tags else "")
        when, data = f"{one.created:%Y-%m-%d %H:%M}", one.tags.get("probe.data", "-")[:8]
        rows.append([str(one.number), alias or "-", when, one.tags.get("run", "-"), *cells, data])
    table = aligned(rows)
    if len({one.tags["probe.data"] for one in versions if "probe.data" in one.tags}) > 1:
        table += "\nonly numbers that were probed on the same data can be compared"
    return table


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as columns of text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _compare(names: Sequence[str], uri: str) -> None:
    from pipelines.comparison import Compared, comparison, parameters_of, unknown_runs
    from pipelines.registry import resolve

    compared: list[Compared] = []
    for name in names:
        client, model, version = resolve(f"models:/{name.removeprefix('models:/')}", uri)
        parameters = parameters_of(client, version)
        compared.append(Compared(name=f"{model}/{version.number}", version=version, parameters=parameters))
    say(aligned(comparison(compared)))
    if unknown := unknown_runs(compared):
        say(f"configurations are not compared: this server does not have the run of {', '.join(unknown)}")


def _list_models(client: "MlflowClient", uri: str) -> None:
    from pipelines.model_versions import registered_names, versions

    names = registered_names(client)
    if not names:
        say(f"no registered models at {place(uri)}; next: python -m pipelines.register run=<run> model=<name>")
    for name in names:
        say(f"\n{name}\n{versions_table(versions(client, name))}")


if __name__ == "__main__":
    run_command("models", __doc__, main)
