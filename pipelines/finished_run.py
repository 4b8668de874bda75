"""A run that can be registered: trained to its end, exported, perhaps probed; read without torch or MLflow."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.provenance import Code
from pipelines.run_folder import EXPORT, PROBE_FILE, SUMMARY_FILE, read_record
from ssl_core.errors import UserError

if TYPE_CHECKING:
    from ssl_core.probe.report import ProbeReport


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
    code: str | None  # the commit, and whether there were changes on top of it
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
    report, code = read_probe_report(folder), (record.environment or {}).get("code")
    return FinishedRun(
        name=record.name,
        folder=folder,
        mlflow_run=record.mlflow_run,
        manifest=record.identity["data"]["manifest"],
        code=None if code is None else str(Code(**code)),
        probe=None if report is None else _numbers(report),
    )


def read_probe_report(folder: Path) -> "ProbeReport | None":
    """What the probe of a run measured; None where there was none.

    Raises:
        UserError: its file is damaged, or of another format.
    """
    path = folder / PROBE_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): probe the run again") from error
    from ssl_core.probe.report import ProbeReport

    return ProbeReport.from_dict(content)


def _numbers(report: "ProbeReport") -> ProbeNumbers:
    from ssl_core.probe.report import PRETRAINED

    row = report.rows[PRETRAINED]
    return ProbeNumbers(
        data=report.data_digest,
        values={name: measure.value for name, measure in row.items()},
        errors={name: measure.error for name, measure in row.items()},
    )
