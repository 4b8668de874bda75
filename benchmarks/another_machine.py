"""A model pulled on "another machine": a fresh virtual environment with the wheel alone, and the registry's address.

    python benchmarks/another_machine.py [--threads 1] [--python <its interpreter, where the environment is there>]

Registers an encoder on an MLflow server with a database and a bucket, embeds images here from the run's folder, builds
the wheel, installs it into a new environment with constraints.txt, and gives `pull` and `embed` there: another folder
and home, no checkout, no keys, of the environment only PATH and the server's address. The embeddings have to be equal
to the bit. Takes some minutes and 3 GB.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.registry_race import Race, a_registry, finished_run
from pipelines import embed
from pipelines.registry import register_run

ROOT = Path(__file__).resolve().parents[1]
IMAGES = 64


def run(command: Sequence[str | Path], *, cwd: Path, environment: Mapping[str, str]) -> float:
    """Run it; seconds."""
    began = monotonic()
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return monotonic() - began


def fresh_environment(folder: Path) -> Path:
    """A new environment with the wheel of this checkout; its interpreter."""
    here = dict(os.environ)
    wheel = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    run([sys.executable, *wheel], cwd=folder, environment=here)
    (built,) = folder.glob("ssl_pipelines-*.whl")
    venv.create(folder / "fresh", with_pip=True)
    python = folder / "fresh" / "bin" / "python"
    install = ["-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", built]
    outside = {name: value for name, value in here.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    seconds = run([python, *install], cwd=folder, environment=outside)
    print(f"the wheel ({built.stat().st_size / 1e3:.0f} kB) and what it needs, installed in {seconds:.0f} s")
    return python


def embeddings(path: Path) -> np.ndarray:
    """float32 [N, D] of a file that `embed` wrote."""
    return np.stack(pq.read_table(path)["embedding"].to_numpy())


def main() -> int:
    """Do it all; status 1 where a bit differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--python", type=Path)
    arguments = parser.parse_args()
    threads = f"threads={arguments.threads}"
    with a_registry() as (uri, folder), tempfile.TemporaryDirectory() as name:
        photos, elsewhere = folder / "photos", Path(name)
        photos.mkdir()
        for number in range(IMAGES):
            pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / f"{number:03d}.png")
        race = Race(uri=uri, storage=str(folder / "runs"), rounds=1, pause=0.0, blind=False, seed=0)
        trained = finished_run(race, 0, 0)
        embed.main([f"model={trained}", f"data={photos}", f"output={folder}/before.parquet", threads])
        print(register_run(trained, "away", uri))

        python = arguments.python or fresh_environment(elsewhere)
        (elsewhere / "home").mkdir()
        clean = {"PATH": os.defpath, "HOME": str(elsewhere / "home"), "MLFLOW_TRACKING_URI": uri}
        words = ["-m", "pipelines.pull", "model=models:/away@champion", "to=encoder"]
        pulled = run([python, *words], cwd=elsewhere, environment=clean)
        words = ["-m", "pipelines.embed", "model=encoder", f"data={photos}", "output=after.parquet", threads]
        embedded = run([python, *words], cwd=elsewhere, environment=clean)
        before, after = embeddings(folder / "before.parquet"), embeddings(elsewhere / "after.parquet")
    equal = before.shape == after.shape and before.tobytes() == after.tobytes()
    print(f"pulled in {pulled:.1f} s, {len(after)} images embedded in {embedded:.1f} s (whole commands)")
    print(f"embeddings {before.shape}: {'equal to the bit' if equal else 'DIFFERENT'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
