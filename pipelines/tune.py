"""Sweep any keys of pretrain on Ray Tune, judged by a probe on held-out training labels, never by the loss.

  python -m pipelines.tune sweep=temperature method=simclr model=resnet_micro data.train=shards/train tune.seeds=3
  python -m pipelines.tune sweep=mask_ratio method=mae … tune.concurrent=4 tune.stop_early=true
  python -m pipelines.tune sweep=mine.yaml … tune.trials=30 tune.train_best=true register=my-encoder
  python -m pipelines.tune … plan=true                     check every input and point, start nothing

Each run of the sweep is a pretraining, <storage>/<name>/<trial>. The same command continues an interrupted sweep; runs
that are over are not run again. Results: <storage>/<name>/summary.json, sweep.md, sweep.png.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from pipelines.config import compose
from pipelines.console import run_command, say
from pipelines.stop_signals import StopSignals, stop_signals
from ssl_core.errors import UserError

_OWN = ("sweep", "sweep.", "tune.", "name")  # overrides that the winner's command does not have


def main(overrides: list[str]) -> None:
    """Check everything, run what is left of the sweep, and say what came out."""
    with stop_signals() as stop:
        _tune(overrides, stop)


def _tune(overrides: list[str], stop: StopSignals) -> None:
    words, file = _own_file(overrides)
    values = compose("tune", words)
    if file is not None:
        values["sweep"] = file

    from pipelines.sweeps.carry_out import carry_out, say_results
    from pipelines.sweeps.sweep import plan_sweep

    chosen = next((word.partition("=")[2] for word in overrides if word.startswith("sweep=")), "temperature")
    name = values["name"] or f"{Path(chosen).stem}-{values['method']['name']}-{datetime.now():%Y%m%d-%H%M%S}"
    shared = [word for word in words if not word.startswith(_OWN)]
    sweep = plan_sweep(values, name=name, words=shared)
    if sweep.run.finished and not sweep.left and not values["plan"]:
        say(f"sweep {name} is finished: more tune.seeds or tune.trials go on with it, a new name starts another one")
        say_results(sweep)
        return
    sweep.check()
    say(sweep.start_line())
    if not values["plan"]:
        carry_out(sweep, stop)


def _own_file(overrides: Sequence[str]) -> tuple[list[str], Mapping[str, Any] | None]:
    """The overrides without a sweep of one's own (`sweep=mine.yaml`), and what that file says."""
    import yaml
    from omegaconf import OmegaConf

    words = [word for word in overrides if not (word.startswith("sweep=") and word.endswith((".yaml", ".yml")))]
    files = [word.partition("=")[2] for word in overrides if word not in words]
    if not files:
        return words, None
    try:
        content = OmegaConf.to_container(OmegaConf.load(files[-1]))  # reads 1e-3 as a number, as configs/ does
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"sweep={files[-1]} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"sweep={files[-1]}: write search: and parameters:, as in configs/sweep/")
    return words, cast(Mapping[str, Any], content)


if __name__ == "__main__":
    run_command("tune", __doc__, main)
