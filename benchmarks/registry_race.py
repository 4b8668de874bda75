"""Two registrations at once, again and again: is there one champion, and is it the better one?

    python benchmarks/registry_race.py --rounds 50
    python benchmarks/registry_race.py --rounds 50 --blind      with the fault that the gate is built against: goes red

Starts an MLflow server with a database, its artifacts in an object store, and two processes with a client each, which
register two versions of a model at the same moment; one is better by three standard errors. Before it makes its version
and between its decision who is champion and the setting of the alias, a process waits for up to --pause seconds, as on
a slow network, so that one often acts on what it read before the other one came. Odd rounds meet a champion that both
are better than; even rounds begin without a model.
"""

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cluster.mlflow_server import mlflow_server
from cluster.object_store import object_store
from pipelines import model_versions, registry
from pipelines.mlflow_connection import connect
from pipelines.run_folder import PROBE_FILE, RunFolder
from ssl_core.export import ExportConfig, save_encoder
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.probe.measure import Measure
from ssl_core.probe.report import PRETRAINED, ProbeReport

SIDES = 2
ERROR = 0.005
TINY = ModelConfig(
    name="resnet18", image_size=16, stem="cifar", arguments={"layers": [1] * 4, "channels": [4, 4, 8, 8]}
)
PATIENCE_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Race:
    """What the processes are told."""

    uri: str
    storage: str
    rounds: int
    pause: float
    blind: bool
    seed: int


@dataclass(frozen=True, kw_only=True)
class Registered:
    """What became of one registration."""

    seconds: float
    alias: str | None
    champions_set: int  # how often this process moved the alias


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round as it was found when both were done."""

    champion: str | None  # the run
    better: str
    aliases: dict[str, int]
    sides: tuple[Registered, ...]

    @property
    def right(self) -> bool:
        """One champion, the better one, and a challenger, if any, that is another version."""
        numbers = list(self.aliases.values())
        return self.champion == self.better and len(numbers) == len(set(numbers))


def model_of(number: int) -> str:
    """Two rounds a model."""
    return f"race-{number // 2}"


def quality(number: int, side: int) -> float:
    """The probe's number; who is better is drawn anew each round."""
    better = random.Random(number).randrange(SIDES)
    return 0.2 + 0.1 * (number % 2) + (3 * ERROR if side == better else 0.0)


def better_run(number: int) -> str:
    """The run that has to be champion."""
    return f"{number}-{max(range(SIDES), key=lambda side: quality(number, side))}"


def finished_run(race: Race, number: int, side: int) -> Path:
    """A run that looks finished: a random encoder and a probe."""
    identity = {"data": {"manifest": "0" * 64}, "train": {"steps": 1}}
    run = RunFolder.open(race.storage, f"{number}-{side}", identity=identity, config={})
    encoder = build_encoder(TINY, seed=SIDES * number + side)
    config = ExportConfig(model=TINY, mean=(0.5,) * 3, std=(0.2,) * 3, num_features=encoder.num_features)
    save_encoder(run.path / "export", encoder, config)
    row = {"linear": Measure(value=quality(number, side), error=ERROR)}
    report = ProbeReport(rows={PRETRAINED: row}, protocol=(), data_digest="A")
    (run.path / PROBE_FILE).write_text(json.dumps(report.to_dict()))
    run.write_summary({})
    return run.path


def register_rounds(race: Race, side: int, barrier: Any, results: Any) -> None:
    """One of the processes: register a run each round, at the same moment as the other."""
    torch.set_num_threads(1)
    connect(race.uri)  # imports MLflow, with its settings
    sets = hold_up(race.pause, random.Random(f"{race.seed}/{side}"))
    if race.blind:
        registry.settle = settle_blindly
    for number in range(race.rounds):
        run = finished_run(race, number, side)
        sets.clear()
        barrier.wait(PATIENCE_SECONDS)
        began = time.monotonic()
        done = registry.register_run(run, model_of(number), race.uri)
        seconds = time.monotonic() - began
        results.put((number, side, Registered(seconds=seconds, alias=done.alias, champions_set=len(sets))))
        barrier.wait(PATIENCE_SECONDS)  # the referee looks now …
        barrier.wait(PATIENCE_SECONDS)  # … and has seen it


def hold_up(pause: float, dice: random.Random) -> list[int]:
    """Let what decides a race wait before it is sent; the list gets the number of each version made champion."""
    from mlflow import MlflowClient

    make, set_alias, champions = MlflowClient.create_model_version, MlflowClient.set_registered_model_alias, list[int]()

    def make_later(self: MlflowClient, *arguments: Any, **options: Any) -> Any:
        time.sleep(dice.uniform(0, pause))
        return make(self, *arguments, **options)

    def set_later(self: MlflowClient, name: str, alias: str, version: str) -> None:
        if alias == model_versions.CHAMPION:
            time.sleep(dice.uniform(0, pause))
            champions.append(int(version))
        set_alias(self, name, alias, version)

    MlflowClient.create_model_version = make_later
    MlflowClient.set_registered_model_alias = set_later
    return champions


def settle_blindly(client: Any, model: str, metric: str) -> list[model_versions.Version]:
    """The planted fault: decide once, set the alias, look no more."""
    everyone = model_versions.versions(client, model)
    best = model_versions.champion([one.entry(metric) for one in everyone])
    if best is not None:
        client.set_registered_model_alias(model, model_versions.CHAMPION, str(best.version))
    return model_versions.versions(client, model)


def run_race(race: Race) -> list[Round]:
    """Start both processes, look at the registry after each round."""
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(SIDES + 1), spawn.Queue()
    processes = [
        spawn.Process(target=register_rounds, args=(race, side, barrier, results), daemon=True) for side in range(SIDES)
    ]
    for process in processes:
        process.start()
    client, rounds = connect(race.uri), list[Round]()
    try:
        for number in range(race.rounds):
            barrier.wait(PATIENCE_SECONDS)
            barrier.wait(PATIENCE_SECONDS)
            sides = {side: done for _, side, done in (results.get() for _ in range(SIDES))}
            rounds.append(look(client, number, tuple(sides[side] for side in range(SIDES))))
            barrier.wait(PATIENCE_SECONDS)
        for process in processes:
            process.join(PATIENCE_SECONDS)
    finally:
        barrier.abort()  # nothing but where a round failed
        for process in processes:
            process.kill()
    return rounds


def look(client: Any, number: int, sides: tuple[Registered, ...]) -> Round:
    """Who is champion now?"""
    everyone = model_versions.versions(client, model_of(number))
    aliases = {alias: one.number for one in everyone for alias in one.aliases}
    champion = next((one.tags["run"] for one in everyone if model_versions.CHAMPION in one.aliases), None)
    return Round(champion=champion, better=better_run(number), aliases=aliases, sides=sides)


def summary(rounds: Sequence[Round]) -> str:
    """The figures."""
    seconds = sorted(side.seconds for one in rounds for side in one.sides)
    moved = [sum(side.champions_set for side in one.sides) for one in rounds]
    wrong = [f"{number}: {one.champion} {one.aliases}" for number, one in enumerate(rounds) if not one.right]
    lines = [
        f"{len(rounds)} rounds: the better one is the only champion in {len(rounds) - len(wrong)}",
        f"the alias was set once in {moved.count(1)} rounds, twice in {moved.count(2)}, more often in "
        f"{sum(times > 2 for times in moved)}",
        f"a registration took {median(seconds):.1f} s, at most {seconds[-1]:.1f} s",
    ]
    return "\n".join(lines + [f"WRONG in round {line}" for line in wrong])


@contextmanager
def a_registry() -> Generator[tuple[str, Path]]:
    """A server, its artifacts in a bucket; its address, and a folder."""
    with tempfile.TemporaryDirectory() as name, object_store(Path(name) / "store") as store:
        store.make_bucket("registry")
        folder, keys = Path(name), store.environment
        with mlflow_server(folder / "mlflow", artifacts="s3://registry/mlflow", environment=keys) as server:
            yield server.uri, folder


def main() -> int:
    """Race and print; status 1 where a champion was the wrong one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--pause", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blind", action="store_true", help="do not read again after setting the alias")
    words = parser.parse_args()
    with a_registry() as (uri, folder):
        storage = str(folder / "runs")
        race = Race(
            uri=uri, storage=storage, rounds=words.rounds, pause=words.pause, blind=words.blind, seed=words.seed
        )
        rounds = run_race(race)
    print(summary(rounds))
    return 0 if all(one.right for one in rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
