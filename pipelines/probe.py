"""Measure what an encoder has learned: k-NN, linear, 1 % and 10 % of the labels, beside raw pixels and random weights.

  python -m pipelines.probe run=first                      the labelled data that the run names
  python -m pipelines.probe run=first train=shards/train val=shards/val
  python -m pipelines.probe run=first@5000                 as it was at a step whose checkpoint is kept
  python -m pipelines.probe model=models:/photos@champion train=shards/train val=shards/val

Prints the table; output=<file> writes it as JSON.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import compose, typed
from pipelines.console import run_command, say
from pipelines.mlflow_connection import RegistryPlace, tracking_uri
from pipelines.run_folder import EXPORT, find_run, read_record
from ssl_core.data.data_set import DataSet, load_data_set
from ssl_core.errors import UserError
from ssl_core.storage.local import local_path, publish_bytes


@dataclass(frozen=True, kw_only=True)
class ProbeCommand:
    """All keys of `probe`."""

    run: str | None = None
    model: str | None = None
    storage: str = "runs"
    train: str | None = None
    val: str | None = None
    max_train: int | None = None
    max_val: int | None = None
    seed: int = 0
    output: str | None = None
    tracking: RegistryPlace


def main(overrides: list[str]) -> None:
    """Find the encoder and the labelled data, measure, print, write."""
    config = typed(ProbeCommand, compose("probe", overrides))
    if (config.run is None) == (config.model is None):
        raise UserError("name either run=<name or folder> or model=<folder or models:/name@alias>")
    run, step = _run_and_step(config)
    data = _labelled_data(config, run)
    with tempfile.TemporaryDirectory() as scratch:
        folder = _encoder(config, run, step, Path(scratch))

        from pipelines.evaluation import probe_encoder
        from ssl_core.export import load_encoder
        from ssl_core.probe.labelled import labelled_set
        from ssl_core.probe.report import ProbeConfig

        what = ProbeConfig(max_train=config.max_train, max_val=config.max_val, seed=config.seed)
        loaded = load_encoder(folder)
        bank, judge = (labelled_set(one, channels=loaded.config.model.in_chans) for one in data)
        report = probe_encoder(loaded, bank, judge, what, say=say)
    say(report.table())
    if config.output is not None:
        publish_bytes(local_path(config.output), (json.dumps(report.to_dict(), indent=2) + "\n").encode())


def _labelled_data(config: ProbeCommand, run: Path | None) -> tuple[DataSet, DataSet]:
    """The sets named here, else those that the run names."""
    train: str | list[str] | None = config.train
    val = config.val
    if run is not None:
        known = read_record(run).config
        train = train or known["probe"]["train"] or known["data"]["train"]
        val = val or known["probe"]["val"] or known["data"]["val"]
    if train is None or val is None:
        raise UserError("the probe needs labelled data: name train=<folder> and val=<folder>")
    return load_data_set(train), load_data_set(val)


def _run_and_step(config: ProbeCommand) -> tuple[Path | None, int | None]:
    """The folder of the run that is named, and the step where one is (`run=<run>@<step>`)."""
    if config.run is None:
        return None, None
    name, at, step = config.run.rpartition("@")
    if not at or "/" in step:
        return find_run(config.run, config.storage), None
    if not step.isdecimal():
        raise UserError(f"run={config.run}: write run=<run>@<step>, such as {name}@5000")
    return find_run(name, config.storage), int(step)


def _encoder(config: ProbeCommand, run: Path | None, step: int | None, scratch: Path) -> Path:
    """The folder of the exported encoder."""
    if run is not None and step is not None:
        from pipelines.kept_steps import export_step

        return export_step(run, step, scratch / "step")
    if run is not None:
        if not (run / EXPORT).is_dir():
            raise UserError(f"run {config.run} has no encoder yet: give its pretrain command again, that continues it")
        return run / EXPORT
    assert config.model is not None, "one of the two is named"
    if not config.model.startswith("models:/"):
        return local_path(config.model)

    from pipelines.registry import pull_model

    return pull_model(config.model, scratch / "model", tracking_uri(config.tracking.uri, config.storage))


if __name__ == "__main__":
    run_command("probe", __doc__, main)
