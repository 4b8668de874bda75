"""The whole road on real images in a few minutes: scikit-learn's handwritten digits, SimCLR, two workers.

  python -m pipelines.demo                                 every call makes a fresh run below demo/

Each step is one of the commands, printed as you would type it.
"""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime

from pipelines.config import compose, typed
from pipelines.console import run_command, say
from ssl_core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """All keys of `demo`."""

    folder: str = "demo"


def main(overrides: list[str]) -> None:
    """Pack, pretrain, probe, register, pull, embed."""
    folder = typed(DemoConfig, compose("demo", overrides)).folder
    name = f"digits-{datetime.now():%Y%m%d-%H%M%S}"
    storage, data = f"{folder}/runs", f"{folder}/{name}"
    store = f"storage={storage}"
    _run("pack", "source=digits", f"output={data}")
    _run(
        "pretrain",
        "experiment=simclr_digits",
        f"data.train={data}/train",
        f"data.val={data}/val",
        f"name={name}",
        store,
        "register=digits",
    )
    _run("pull", "model=models:/digits@champion", f"to={data}/model", store)
    _run("embed", f"model={data}/model", f"data={data}/val", f"output={data}/val.parquet")
    say(
        f"\nDone. The run: {storage}/{name}; the registered model: {data}/model (README.md shows how to load it)\n"
        "Next: make ui shows runs and models in MLflow on 127.0.0.1\n"
        "      your own images: python -m pipelines.pack source=<folder> output=shards val_fraction=0.1\n"
        "                       python -m pipelines.pretrain method=simclr model=resnet18_32 data.train=shards/train "
        "data.val=shards/val"
    )


def _run(command: str, *overrides: str) -> None:
    """Run a command as the user would; raises UserError where it fails (it has said why itself)."""
    say(f"\n$ python -m pipelines.{command} {shlex.join(overrides)}")
    status = subprocess.run([sys.executable, "-m", f"pipelines.{command}", *overrides], check=False).returncode
    if status:
        raise UserError(f"pipelines.{command} ended with exit status {status}: its last line says why")


if __name__ == "__main__":
    run_command("demo", __doc__, main)
