"""What the chaos benchmark says of made-up records: its zeros are worth something once it can say otherwise."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import chaos_outcome
from benchmarks.chaos import spread
from benchmarks.chaos_outcome import Outcome, Run, Strike, compared, table

STEPS = 4


def a_run(storage: Path, name: str, attempts: list[list[tuple[int, float]]], audit: list[list[int]]) -> Run:
    """A finished run: (step, time) of each attempt's metrics; scheduled positions of each step; weights all zero."""
    run = Run(method="simclr", workers="2", words=(), storage=storage, name=name)
    (run.folder / "metrics").mkdir(parents=True)
    (run.folder / "export").mkdir()
    for number, lines in enumerate(attempts, 1):
        text = "".join(json.dumps({"step": step, "time": time}) + "\n" for step, time in lines)
        (run.folder / "metrics" / f"attempt-{number:04d}.jsonl").write_text(f'{{"first_step": {lines[0][0]}}}\n{text}')
    records = [
        {"step": step, "loss": float(1 + step).hex(), "ids": ids, "views": f"of {ids}"}
        for step, ids in enumerate(audit)
    ]
    (run.folder / "audit.jsonl").write_text("".join(json.dumps(line) + "\n" for line in records))
    save_file({"weight": torch.zeros(3)}, run.folder / "export" / "encoder.safetensors")
    return run


@pytest.fixture
def calm(tmp_path: Path) -> Run:
    return a_run(
        tmp_path, "calm", [[(step, float(step)) for step in range(1, STEPS + 1)]], [[0, 1], [2, 3], [4, 5], [6, 7]]
    )


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """What MLflow has; every step once."""
    steps = Counter(range(1, STEPS + 1))

    def answer(run: Run, uri: str) -> dict[str, Counter[int]]:
        return {"loss": steps}

    monkeypatch.setattr(chaos_outcome, "mlflow_steps", answer)
    return steps


def outcome(run: Run, calm: Run, *strikes: Strike) -> Outcome:
    return compared(run, calm, list(strikes), 2, "http://nowhere")


def test_a_good_recovery(tmp_path: Path, calm: Run, history: Counter[int]) -> None:
    attempts = [[(1, 1.0), (2, 2.0), (3, 3.0)], [(2, 13.0), (3, 13.5), (4, 14.0)]]  # saved after step 1
    run = a_run(tmp_path, "run", attempts, [[0, 1], [2, 3], [4, 5], [6, 7]])
    strike = Strike(kind="worker", step=3, time=4.0)
    found = outcome(run, calm, strike)
    assert (found.attempts, found.steps_redone, strike.seconds_to_next_step) == (2, 2, 10.0)
    assert (found.samples_lost, found.samples_repeated, found.mlflow_missing, found.mlflow_doubled) == (0, 0, 0, 0)
    assert found.audit_equal
    assert found.bytes_equal
    assert "| all | 1 worker | 1 | 2 | 10.0, 10.0 | 0, 0 | 0 | 0, 0 | equal | bit-equal |" in table([found])


def test_what_is_wrong_is_counted(tmp_path: Path, calm: Run, history: Counter[int]) -> None:
    attempts = [[(step, float(step)) for step in range(1, STEPS + 1)]]
    run = a_run(tmp_path, "run", attempts, [[0, 1], [2, 2], [4, 5], [6, 7]])  # 3 never came, 2 twice
    save_file({"weight": torch.tensor([0.0, 0.5, 0.0])}, run.folder / "export" / "encoder.safetensors")
    del history[1]
    history[2] += 1
    found = outcome(run, calm, Strike(kind="worker", step=4, time=9.0))
    assert (found.samples_lost, found.samples_repeated, found.mlflow_missing, found.mlflow_doubled) == (1, 1, 1, 1)
    assert (found.audit_equal, found.bytes_equal, found.weight_difference) == (False, False, 0.5)
    assert math.isnan(found.strikes[0].seconds_to_next_step)  # nothing came after it
    assert "| 1 worker | 0 | 0 | – | 1, 1 | 1 | 1, 1 | differ by 0.0e+00 | differ by 5.0e-01 |" in table([found])


def test_a_history_that_is_too_short(tmp_path: Path, calm: Run, history: Counter[int]) -> None:
    run = a_run(tmp_path, "run", [[(1, 1.0)]], [[0, 1]])
    found = outcome(run, calm)
    assert (found.samples_lost, found.samples_repeated, found.loss_difference) == (6, 0, math.inf)


def test_faults_are_dealt_out_evenly() -> None:
    counts: dict[str, int] = {"worker": 50, "node": 2}
    combinations: list[Any] = [(method, workers) for method in ("simclr", "moco", "mae") for workers in "123"]
    runs = spread(counts, combinations, 6)
    assert Counter(kind for run in runs for kind in run) == counts
    assert {len(run) for run in runs} == {5, 6}
    assert len(runs) == 9
    assert [len(run) for run in spread(counts, combinations[:1], 6)] == [6, 6, 6, 6, 6, 6, 6, 5, 5]
