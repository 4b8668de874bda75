"""A run that can be registered: trained to its end, exported, perhaps probed; read without torch or MLflow."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.run_folder import EXPORT, PROBE_FILE, SUMMARY_FILE, read_record
from ssl_core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ProbeNumbers:
    """What the probe measured on the pretrained encoder, as shares; each with its standard error."""

    data: str  # digest of the data that it was measured on: numbers with the same digest can be compared
    values: Mapping[str, float]
    errors: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """What the registry keeps of a run."""

    name: str
    folder: Path
    mlflow_run: str | None
    manifest: str  # digest
    probe: ProbeNumbers | None

    @property
    def export(self) -> Path:
        """The exported encoder."""
        return self.folder / EXPORT


def read_finished_run(folder: Path) -> FinishedRun:
    """Read a run's folder.

    Raises:
        UserError: it is no run, it is not finished, or it has no exported encoder.
    """
    record = read_record(folder)
    if record.state != "finished" or not (folder / SUMMARY_FILE).is_file():
        raise UserError(
            f"run {folder} is not finished ({record.state}): give its pretrain command again, that continues it"
        )
    if "sweep" in record.identity:
        raise UserError(f"{folder} is a sweep: register one of its runs, {folder}/<run>, or the winner trained in full")
    if not (folder / EXPORT / "checksums.json").is_file():
        raise UserError(f"run {folder} has no exported encoder in {EXPORT}/: give its pretrain command again")
    return FinishedRun(
        name=record.name,
        folder=folder,
        mlflow_run=record.mlflow_run,
        manifest=record.identity["data"]["manifest"],
        probe=read_probe(folder / PROBE_FILE),
    )


def read_probe(path: Path) -> ProbeNumbers | None:
    """The pretrained encoder's numbers in a `probe.json`; None where there is none.

    Raises:
        UserError: it is damaged, or of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): probe the run again") from error
    from ssl_core.probe.report import PRETRAINED, ProbeReport

    report = ProbeReport.from_dict(content)
    row = report.rows[PRETRAINED]
    return ProbeNumbers(
        data=report.data_digest,
        values={name: measure.value for name, measure in row.items()},
        errors={name: measure.error for name, measure in row.items()},
    )
