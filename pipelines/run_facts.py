"""What MLflow and the model card say of a run beside its numbers: configuration, environment, source, data.

In MLflow: parameters and tags, `config.yaml`, `environment/attempt-0001.json` (one a command), `manifests/*.json`, and
the data sets with their digests as the run's inputs.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.finished_run import read_probe_report
from pipelines.mlflow_connection import without_passwords
from pipelines.provenance import Code, source_tags
from pipelines.run_folder import EXPORT, RunRecord, read_record
from pipelines.tracking import Dataset, Tracker

if TYPE_CHECKING:
    from pipelines.plan import Plan
    from ssl_core.data.manifest import Manifest


def log_facts(tracker: Tracker, record: RunRecord, plan: "Plan") -> None:
    """Copy everything that is known of a run before it trains; `record.environment` is that of this command."""
    config, environment = without_passwords(record.config), dict(record.environment or {})
    tracker.log_params({**config, "lanes": plan.lanes.count, "total_steps": plan.total_steps})
    tags = {"manifest": plan.train_data.digest, "method": plan.config.method["name"], "run_folder": record.name}
    tracker.set_tags({**tags, **source_tags(environment, "pretrain")})
    tracker.log_json(config, "config.yaml")
    tracker.log_json(environment, f"environment/attempt-{record.attempts + 1:04d}.json")
    found = manifests(plan)
    for name, manifest in found.items():
        tracker.log_json({**asdict(manifest), "digest": manifest.digest}, f"manifests/{name}.json")
    tracker.log_datasets(_datasets(found))


def manifests(plan: "Plan") -> dict[str, "Manifest"]:
    """All manifests of a run by what they are for: `train`, `probe-train`, `probe-val`; numbered where several are."""
    from pipelines.plan import probe_data

    sets = {"train": plan.train_data}
    labelled = probe_data(plan)
    if labelled is not None:
        sets |= {"probe-train": labelled[0], "probe-val": labelled[1]}
    return {
        f"{name}-{number}" if len(data.parts) > 1 else name: part
        for name, data in sets.items()
        for number, part in enumerate(data.parts, 1)
    }


def _datasets(manifests: Mapping[str, "Manifest"]) -> list[Dataset]:
    """Each data set once, named for all that it is for: MLflow keeps one purpose of a digest."""
    uses: dict[str, list[str]] = {}
    for name, manifest in manifests.items():
        uses.setdefault(manifest.digest, []).append(name)
    datasets: list[Dataset] = []
    for digest, names in uses.items():
        one = manifests[names[0]]
        facts = {"samples": one.num_samples, "bytes": one.num_bytes, "classes": len(one.classes)}
        datasets.append(Dataset(name=", ".join(names), digest=digest, place=one.root, facts=facts))
    return datasets


def publish_run_card(folder: Path) -> None:
    """Write the model card of a trained run's exported encoder: what made it, and the probe's table."""
    from ssl_core.export import load_config, model_card, publish_card

    record, report = read_record(folder), read_probe_report(folder)
    facts = ["## Where it comes from", "", *_origin(record), "", "## What was measured", ""]
    facts.append(report.table() if report else "Nothing: the run names no labelled validation data.")
    export = folder / EXPORT
    publish_card(export, model_card(load_config(export), title=f"Encoder of the run {record.name}", facts=facts))


def _origin(record: RunRecord) -> list[str]:
    """A list in Markdown."""
    identity = record.identity
    method, train = dict(identity.get("method", {})), identity["train"]
    said: dict[str, Any] = {"method": method.pop("name", None), "its values": _listed(method)}
    said |= {"steps": train["steps"], "global batch": train.get("global_batch"), "seed": identity.get("seed")}
    said |= {"manifest of the training data": identity["data"]["manifest"]}
    environment = record.environment or {}
    if environment.get("code"):
        said["code"] = f"commit {Code(**environment['code'])}"
    said["versions"] = _listed({"python": environment["python"], **environment["packages"]}) if environment else None
    return [f"* {name}: {value}" for name, value in said.items() if value not in (None, "")]


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
