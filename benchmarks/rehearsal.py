"""The road as a team goes it: jobs on a cluster of three nodes, a bucket, a registry, and the model on another machine.

    python benchmarks/rehearsal.py [--hold] [--python <interpreter of the last step's environment, where it is there>]

Starts the rehearsal cluster (Ray with three nodes, an object store, MLflow with a database) and gives, from an empty
folder with what environment.sh says, the commands of docs/cluster.md: pack into the bucket, then as jobs preflight,
pretrain (a worker a node, checkpoints in the bucket) and a sweep. What was registered is pulled on "another machine": a
new virtual environment with the wheel and constraints.txt alone, another folder and home, no checkout, no keys, of the
environment only PATH and the server's address. Embeddings of the run's folder and of the pulled model have to be equal
to the bit. About 15 minutes and 3 GB; --hold leaves the servers there to be looked at until Ctrl-C.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pyarrow.parquet as pq

from cluster.local import BUCKET, local_cluster, where_it_is

ROOT = Path(__file__).resolve().parents[1]
NODES = 3
THREADS = "threads=1"


@dataclass(kw_only=True)
class Shell:
    """A terminal: commands are shown with what they say, and the first that fails ends the rehearsal."""

    folder: Path
    environment: dict[str, str]
    python: Path = Path(sys.executable)
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def run(self, *words: str | Path) -> str:
        """Give `python -m …`: what it said."""
        command = [str(self.python), "-m", *map(str, words)]
        print("\n$ python -m", *command[2:], flush=True)
        began, said = monotonic(), list[str]()
        with subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(f"  {line}", end="", flush=True)
                said.append(line)
        if process.returncode:
            sys.exit(f"rehearsal: ended with status {process.returncode}")
        self.seconds[" ".join(map(str, words[:2]))] = monotonic() - began
        return "".join(said)


def fresh_environment(folder: Path) -> Path:
    """A new virtual environment with the wheel of this checkout; its interpreter."""
    here = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    Shell(folder=folder, environment=here).run(
        *("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    )
    (wheel,) = folder.glob("ssl_pipelines-*.whl")
    venv.create(folder / "fresh", with_pip=True)
    fresh = Shell(folder=folder, environment=here, python=folder / "fresh" / "bin" / "python")
    fresh.run("pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel)
    return fresh.python


def embeddings(path: Path) -> np.ndarray:
    """float32 [N, D] of a file that `embed` wrote."""
    return np.stack(pq.read_table(path)["embedding"].to_numpy())


def rehearse(driver: Shell, runs: Path, other: Callable[[], Shell]) -> Sequence[str]:
    """The whole road; what was wrong."""
    data = f"s3://{BUCKET}/digits"
    run, before, after = runs / "first", runs / "before.parquet", runs / "after.parquet"
    shared = ["experiment=simclr_digits", f"data.train={data}/train", f"data.val={data}/val", f"storage={runs}"]
    shared += [f"checkpoints=s3://{BUCKET}/checkpoints"]
    pretraining = [*shared, "name=first", f"train.workers={NODES}", "data.lanes=4"]
    driver.run("pipelines.pack", "source=digits", f"output={data}")
    driver.run("cluster.submit", "preflight", *pretraining, "id=preflight")
    log = driver.run("cluster.submit", "pretrain", *pretraining, "register=digits", "retries=2", "id=first")
    swept = ["tune.seeds=1", "tune.steps=22", "tune.trials=2", "train.workers=1", "name=sweep", "id=sweep"]
    sweep_log = driver.run("cluster.submit", "tune", "sweep=temperature", *shared, *swept)
    driver.run("cluster.job", "list")
    driver.run("pipelines.embed", f"model={run}", f"data={data}/val", f"output={before}", THREADS)

    away = other()
    away.run("pipelines.pull", "model=models:/digits@champion", "to=encoder")
    # the images come to the other machine as files, since it has no keys of the bucket
    driver.run("pipelines.pack", "source=digits", f"output={away.folder}/digits")
    away.run("pipelines.embed", "model=encoder", "data=digits/val", f"output={after}", THREADS)
    driver.seconds |= away.seconds
    one, two = embeddings(before), embeddings(after)
    print(f"\nembeddings {one.shape} here, {two.shape} there")
    wanted = {
        f"{NODES} workers on {NODES} nodes": f"{NODES} workers on {NODES} nodes" in log,
        "its version is champion": re.search(r"registered models:/digits/1: champion", log) is not None,
        "the sweep has a winner": "The winner in full" in sweep_log,
        "embeddings equal to the bit": one.shape == two.shape and one.tobytes() == two.tobytes(),
    }
    return [what for what, so in wanted.items() if not so]


def main() -> int:
    """Do it all; status 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hold", action="store_true")
    parser.add_argument("--python", type=Path)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # takes the cluster down as well
    with tempfile.TemporaryDirectory() as name:
        here, elsewhere, away = (Path(name) / part for part in ("cluster", "elsewhere", "away"))
        for folder in (elsewhere, away, away / "home"):
            folder.mkdir()
        with local_cluster(here, nodes=NODES) as cluster:
            print(where_it_is(here, cluster), flush=True)
            driver = Shell(folder=elsewhere, environment={**os.environ, **cluster.environment})
            clean = {"PATH": os.defpath, "HOME": str(away / "home")}
            clean["MLFLOW_TRACKING_URI"] = cluster.environment["MLFLOW_TRACKING_URI"]

            def other() -> Shell:
                python = arguments.python or fresh_environment(away)
                return Shell(folder=away, environment=clean, python=python)

            wrong = rehearse(driver, Path(name) / "runs", other)
            print("\n".join(f"{what:32} {seconds:6.1f} s" for what, seconds in driver.seconds.items()))
            print("\n".join(f"WRONG: not so: {what}" for what in wrong) or "all as it should be", flush=True)
            with suppress(KeyboardInterrupt):
                while arguments.hold:
                    sleep(1)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
