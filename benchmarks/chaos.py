"""What is left of a run whose workers, nodes, driver and servers are killed? Its weights should not know.

    python benchmarks/chaos.py --kills 5
    python benchmarks/chaos.py --kills 50 --methods simclr moco mae --workers 1 2 3
    python benchmarks/chaos.py --nodes 1 --drivers 1 --outages 1 --workers 1-3 [--data <shards>] [key=value …]

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
import math
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import boto3
import numpy as np
from safetensors.torch import load_file

from cluster.local import BUCKET, LocalCluster, local_cluster
from cluster.process_tree import process_tree
from ssl_core.train.records import read_part

_WORKER = "RayTrainWorker"  # in the title of a training process
_SETTLED_SECONDS = 0.5  # a line that is so much younger than a fault was written by who recovered from it
_EXIT_RESUMABLE = 75
_CNN = ("model=resnet_micro", "model.arguments.layers=[1,1,1,1]", "model.arguments.channels=[8,8,16,16]")
_VIT = ("model=vit_micro", "model.arguments.depth=2", "model.arguments.embed_dim=48")
METHODS = {
    "simclr": (*_CNN, "method=simclr", "method.projector=[32,16]", "optim.name=sgd"),
    "moco": (*_CNN, "method=moco", "method.projector=[32,16]", "method.queue=500"),
    "mae": (*_VIT, "method=mae", "method.decoder_width=32", "method.decoder_depth=1"),
}


@dataclass(kw_only=True)
class Strike:
    """A fault that was done."""

    kind: str
    step: int
    time: float
    seconds_to_next_step: float = math.nan


@dataclass(kw_only=True)
class Outcome:
    """A disturbed run beside the undisturbed one."""

    method: str
    workers: str
    strikes: list[Strike]
    commands: int
    attempts: int
    steps_redone: int
    samples_lost: int
    samples_repeated: int
    views_differing: int  # steps whose views are not those of the undisturbed run
    mlflow_missing: int
    mlflow_doubled: int
    audit_equal: bool
    bytes_equal: bool
    loss_difference: float  # relative, the largest
    weight_difference: float  # absolute, the largest


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run's command and folder."""

    method: str
    workers: str
    words: tuple[str, ...]
    storage: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.storage / self.name

    def command(self) -> list[str]:
        start = [sys.executable, "-m", "pipelines.pretrain", *METHODS[self.method], *self.words]
        return [*start, f"storage={self.storage}", f"name={self.name}"]

    def lines(self) -> list[list[dict[str, Any]]]:
        """The metrics' lines, a list an attempt."""
        return [read_part(path)[1] for path in sorted((self.folder / "metrics").glob("attempt-*.jsonl"))]

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text(encoding="utf-8").splitlines()]


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


def compared(run: Run, calm: Run, strikes: list[Strike], commands: int, mlflow: str) -> Outcome:
    """Everything that can be told from the records."""
    parts = run.lines()
    every_line = [line for lines in parts for line in lines]
    for strike in strikes:
        done = max((line["step"] for line in every_line if line["time"] <= strike.time), default=0)
        after = [line["time"] for line in every_line if line["time"] > strike.time and line["step"] > done]
        strike.seconds_to_next_step = min(after, default=math.nan) - strike.time
    audit, calm_audit = run.audit(), calm.audit()
    seen, scheduled = (
        Counter((line["step"], position) for line in lines for position in line["ids"]) for lines in (audit, calm_audit)
    )
    losses, calm_losses = (
        np.array([float.fromhex(line["loss"]) for line in lines]) for lines in (audit[: len(calm_audit)], calm_audit)
    )
    logged = mlflow_steps(run, mlflow)
    expected = {line["step"] for line in every_line}
    files = [one.folder / "export" / "encoder.safetensors" for one in (run, calm)]
    weights, calm_weights = (load_file(file) for file in files)
    return Outcome(
        method=run.method,
        workers=run.workers,
        strikes=strikes,
        commands=commands,
        attempts=len(parts),
        steps_redone=len(every_line) - len(expected),
        samples_lost=(scheduled - seen).total(),
        samples_repeated=(seen - scheduled).total(),
        views_differing=sum(one != other for one, other in zip_longest(_views(audit), _views(calm_audit))),
        mlflow_missing=sum((Counter(dict.fromkeys(expected, 1)) - steps).total() for steps in logged.values()),
        mlflow_doubled=sum((steps - Counter(dict.fromkeys(expected, 1))).total() for steps in logged.values()),
        audit_equal=audit == calm_audit,
        bytes_equal=files[0].read_bytes() == files[1].read_bytes(),
        loss_difference=_relative(losses, calm_losses),
        weight_difference=max(float((weights[name] - calm_weights[name]).abs().max()) for name in calm_weights),
    )


def _views(audit: list[dict[str, Any]]) -> list[str]:
    return [line["views"] for line in audit]


def _relative(losses: np.ndarray, calm_losses: np.ndarray) -> float:
    return float(np.max(np.abs(losses / calm_losses - 1))) if len(losses) == len(calm_losses) else math.inf


def mlflow_steps(run: Run, uri: str) -> dict[str, Counter[int]]:
    """How often the server has each step, for metrics that every logged step has."""
    run_id = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))["mlflow_run"]
    found: dict[str, Counter[int]] = {}
    for key in ("loss", "learning_rate", "images_per_second"):
        url = f"{uri}/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key={key}&max_results=25000"
        with urllib.request.urlopen(url, timeout=30) as answer:
            points = json.loads(answer.read()).get("metrics", [])
        found[key] = Counter(int(point.get("step", 0)) for point in points)
    return found


def table(outcomes: list[Outcome]) -> str:
    """The README's table: a row a method and number of workers, and all together."""
    heads = ["run", "faults", "recovered", "steps redone", "s to next step: median, max", "samples lost, repeated"]
    heads += ["steps with other views", "MLflow missing, doubled", "losses", "weights"]
    rows = [heads, ["---"] * len(heads)]
    groups: dict[str, list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault(f"{one.method}, W = {one.workers}", []).append(one)
    for name, members in (*groups.items(), ("all", outcomes)):
        rows.append([name, *_row(members)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(members: list[Outcome]) -> Iterator[str]:
    strikes = [strike for one in members for strike in one.strikes]
    seconds = [strike.seconds_to_next_step for strike in strikes if not math.isnan(strike.seconds_to_next_step)]
    yield ", ".join(f"{count} {kind}" for kind, count in Counter(strike.kind for strike in strikes).items()) or "0"
    yield f"{len(seconds)}"
    yield f"{sum(one.steps_redone for one in members)}"
    yield f"{median(seconds):.1f}, {max(seconds):.1f}" if seconds else "–"
    yield f"{sum(one.samples_lost for one in members)}, {sum(one.samples_repeated for one in members)}"
    yield f"{sum(one.views_differing for one in members)}"
    yield f"{sum(one.mlflow_missing for one in members)}, {sum(one.mlflow_doubled for one in members)}"
    loss, weight = (max(getattr(one, f"{what}_difference") for one in members) for what in ("loss", "weight"))
    yield "equal" if all(one.audit_equal for one in members) else f"differ by {loss:.1e}"
    yield "bit-equal" if all(one.bytes_equal for one in members) else f"differ by {weight:.1e}"


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
