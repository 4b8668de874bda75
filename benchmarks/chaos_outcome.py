"""What faults left of a run: its records beside those of a run that nobody disturbed, and the table of many."""

import json
import math
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from safetensors.torch import load_file

from ssl_core.train.records import read_part

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
