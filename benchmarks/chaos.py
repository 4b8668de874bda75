"""What is left of a run whose workers, nodes, driver and servers are killed? Its weights should not know.

    python -m benchmarks.chaos --kills 5
    python -m benchmarks.chaos --kills 50 --methods simclr moco mae --workers 1 2 3
    python -m benchmarks.chaos --nodes 1 --drivers 1 --outages 1 --workers 1-3 [--data <shards>] [key=value …]

For each method and number of workers: a run that nobody disturbs, then runs of the same command under faults, on a
rehearsal cluster of real processes (`cluster.local`). Each fault waits for a random step (seeded) and strikes as soon
as the metrics show it. A command that ends with status 75 (the same command continues it) or was killed itself is
given again, as a person would; where the driver goes on by itself that does not happen.

A table says what it cost. Effective history and weights are compared with the undisturbed run's, MLflow's history with
the steps that were logged. `1-3` workers: as many as there is room for; then sums are added in other orders, so such
runs are in fp64 and their losses are compared, instead of bits.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import boto3
import numpy as np

from benchmarks.chaos_outcome import METHODS, Outcome, Run, Strike, compared, table
from cluster.local import BUCKET, LocalCluster, local_cluster
from cluster.process_tree import process_tree

_WORKER = "RayTrainWorker"  # in the title of a training process
_SETTLED_SECONDS = 0.5  # a line that is so much younger than a fault was written by who recovered from it
_EXIT_RESUMABLE = 75


@dataclass(kw_only=True)
class Faults:
    """Does things to a cluster, and undoes them after a while."""

    cluster: LocalCluster
    rng: np.random.Generator
    away_seconds: float
    back_seconds: float
    _later: list[tuple[float, Callable[[], Any]]] = field(default_factory=list[tuple[float, Callable[[], Any]]])

    def strike(self, kind: str, driver: "subprocess.Popen[bytes]") -> bool:
        """Do it; False where there is nobody to strike just now."""
        return {
            "worker": lambda: self._kill_one([pid for _, pid in self._workers()]),
            "loader": lambda: self._kill_one([pid for _, worker in self._workers() for pid in _below(worker)]),
            "node": self._kill_a_node,
            "driver": lambda: self._kill_one([driver.pid]),
            "tracking": lambda: self._stop(self.cluster.mlflow),
            "store": lambda: self._stop(self.cluster.store),
        }[kind]()

    def undo(self, *, now: bool = False) -> None:
        """What is due, or everything."""
        for entry in list(self._later):
            due, action = entry
            if now or time.monotonic() >= due:
                self._later.remove(entry)
                action()

    def _workers(self) -> list[tuple[int, int]]:
        """Number of the node and process id of each training process."""
        return [
            (number, pid)
            for number, node in enumerate(self.cluster.nodes)
            for pid, title in process_tree(node.pid).items()
            if _WORKER in title
        ]

    def _kill_one(self, pids: list[int]) -> bool:
        if pids:
            os.kill(pids[int(self.rng.integers(len(pids)))], signal.SIGKILL)
        return bool(pids)

    def _kill_a_node(self) -> bool:
        numbers = sorted({number for number, _ in self._workers()})
        if numbers:
            self.cluster.kill_node(numbers[int(self.rng.integers(len(numbers)))])
            self._later.append((time.monotonic() + self.back_seconds, self.cluster.add_node))
        return bool(numbers)

    def _stop(self, one: Any) -> bool:
        one.server.kill()
        self._later.append((time.monotonic() + self.away_seconds, one.server.start))
        return True


def _below(pid: int) -> list[int]:
    return [one for one in process_tree(pid) if one != pid]


def carry_out(run: Run, faults: Faults, wanted: list[tuple[int, str]]) -> tuple[list[Strike], int]:
    """Give the command until it is done, with faults of these kinds at these steps: what was done, and how often."""
    strikes: list[Strike] = []
    pending = sorted(wanted)
    most = 2 * len(pending) + 3
    for number in range(1, most):
        with (run.storage / f"{run.name}.log").open("ab") as log:
            driver = subprocess.Popen(
                run.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **faults.cluster.environment},
            )
        try:
            while driver.poll() is None:
                reached, written = _latest(run)
                settled = not strikes or written > strikes[-1].time + _SETTLED_SECONDS
                if pending and settled and reached >= pending[0][0] and faults.strike(pending[0][1], driver):
                    strikes.append(Strike(kind=pending.pop(0)[1], step=reached, time=time.time()))
                faults.undo()
                time.sleep(0.01)
        finally:
            driver.kill()
            status = driver.wait()
        if status == 0:
            faults.undo(now=True)
            return strikes, number
        if status not in (_EXIT_RESUMABLE, -signal.SIGKILL):
            sys.exit(f"status {status}: see {run.storage / run.name}.log")
    sys.exit(f"not done after {most} commands: see {run.storage / run.name}.log")


def _latest(run: Run) -> tuple[int, float]:
    """The last step in the metrics of the newest attempt that has any, and when it was written."""
    for lines in reversed(run.lines()):
        if lines:
            return int(lines[-1]["step"]), float(lines[-1]["time"])
    return 0, 0.0


def spread(counts: dict[str, int], combinations: list[tuple[str, str]], most: int) -> list[list[str]]:
    """Kinds of faults for each run: dealt out like cards, run after run of each combination, at most so many a run."""
    cards = [kind for kind, count in counts.items() for _ in range(count)]
    runs = max(len(combinations), -(-len(cards) // most))
    return [cards[number::runs] for number in range(runs)]


def run_words(arguments: argparse.Namespace, workers: str, data: str) -> tuple[str, ...]:
    """Overrides of a run and of its undisturbed twin but for `train.workers`."""
    return (
        *(f"data.train={data}", "data.lanes=6", "model.image_size=16", "model.in_chans=1", "train.threads=1"),
        *(f"train.global_batch={arguments.batch}", f"train.steps={arguments.steps}", "train.log_every=1"),
        *(f"train.checkpoint_every={arguments.checkpoint_every}", "train.audit=true"),
        *(("train.precision=fp64",) if "-" in workers else ()),
        *arguments.overrides,
    )


def place_data(arguments: argparse.Namespace, cluster: LocalCluster) -> str:
    """The shards: given, or scikit-learn's digits; in the bucket where its server is to go away."""
    folder: Path = arguments.data or arguments.folder / "digits" / "train"
    if arguments.data is None and not folder.exists():
        words = ["source=digits", f"output={folder.parent}"]
        subprocess.run([sys.executable, "-m", "pipelines.pack", *words], check=True, capture_output=True)
    if not arguments.stores or cluster.store is None:
        return str(folder.resolve())
    client = boto3.client("s3", **cluster.store.client_arguments)
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"data/{path.relative_to(folder)}")
    return f"s3://{BUCKET}/data"


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in {
        "kills": "SIGKILLs of workers",
        "loaders": "SIGKILLs of loader processes",
        "nodes": "nodes that are lost",
        "drivers": "SIGKILLs of the driver",
        "outages": "outages of the tracking server",
        "stores": "outages of the S3 endpoint, which then has the data",
    }.items():
        parser.add_argument(f"--{name}", type=int, default=0, help=f"{what}, in all")
    parser.add_argument("--methods", nargs="+", default=["simclr"], choices=list(METHODS))
    parser.add_argument("--workers", nargs="+", default=["2"], help="1, 2, … or 1-3")
    parser.add_argument("--per-run", type=int, default=6, help="faults of a run at most")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--checkpoint-every", default="5")
    parser.add_argument("--away-seconds", type=float, default=20.0, help="how long a server is away")
    parser.add_argument("--back-seconds", type=float, default=0.0, help="when a lost node is replaced")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="shards; default: scikit-learn's digits")
    parser.add_argument("--folder", type=Path, default=Path("chaos"), help="for everything; a new one each time")
    parser.add_argument("overrides", nargs="*", help="key=value of pipelines.pretrain")
    return parser.parse_intermixed_args(words)


def main() -> None:
    """Run, compare, print."""
    arguments = arguments_of()
    arguments.folder = arguments.folder.resolve()
    storage: Path = arguments.folder / "runs"
    if storage.exists():
        sys.exit(f"{arguments.folder} has runs already, which are finished: name another --folder")
    storage.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # takes the cluster down as well
    counts = {
        "worker": arguments.kills,
        "loader": arguments.loaders,
        "node": arguments.nodes,
        "driver": arguments.drivers,
        "tracking": arguments.outages,
        "store": arguments.stores,
    }
    combinations = [(method, workers) for method in arguments.methods for workers in arguments.workers]
    most_workers = max(int(workers.split("-")[-1]) for workers in arguments.workers)
    spare = 0 if any("-" in workers for workers in arguments.workers) else 1
    rng = np.random.default_rng(arguments.seed)
    outcomes: list[Outcome] = []
    calm_runs: dict[tuple[str, str], Run] = {}
    with local_cluster(
        arguments.folder / "cluster",
        nodes=most_workers + spare,
        object_store=bool(arguments.stores),
        dashboard=False,
    ) as cluster:
        assert cluster.mlflow
        data = place_data(arguments, cluster)
        faults = Faults(
            cluster=cluster, rng=rng, away_seconds=arguments.away_seconds, back_seconds=arguments.back_seconds
        )
        for number, kinds in enumerate(spread(counts, combinations, arguments.per_run)):
            method, workers = combinations[number % len(combinations)]
            words = run_words(arguments, workers, data)
            least, _, most = workers.partition("-")

            def make(
                name: str, asked: str, words: tuple[str, ...] = words, method: str = method, workers: str = workers
            ) -> Run:
                words = (*words, f"train.workers={asked}")
                return Run(method=method, workers=workers, words=words, storage=storage, name=name)

            if (method, workers) not in calm_runs:
                calm_runs[method, workers] = make(f"{method}-{workers}-calm", most or least)
                carry_out(calm_runs[method, workers], faults, [])
            run = make(f"{method}-{workers}-{number}", f"[{least},{most}]" if most else least)
            steps = rng.integers(1, arguments.steps - 4, size=len(kinds))
            wanted = list(zip(steps.tolist(), rng.permutation(kinds).tolist(), strict=True))
            strikes, commands = carry_out(run, faults, wanted)
            outcome = compared(run, calm_runs[method, workers], strikes, commands, cluster.mlflow.uri)
            outcomes.append(outcome)
            struck = ", ".join(f"{one.kind} at {one.step} ({one.seconds_to_next_step:.1f} s)" for one in strikes)
            print(f"{run.name}: {outcome.attempts} attempts, {commands} commands, {struck or 'no faults'}", flush=True)
            if len(strikes) < len(kinds):
                print(f"  {len(kinds) - len(strikes)} faults found nobody before the end", flush=True)
    (arguments.folder / "chaos.json").write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    print(f"\n{table(outcomes)}")


if __name__ == "__main__":
    main()
