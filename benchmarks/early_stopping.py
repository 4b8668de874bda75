"""What would early stopping have saved in a sweep that trained every run in full, and what would it have found?

    python benchmarks/early_stopping.py <storage>/<sweep> [--grace 2] [--reduction 3] [--concurrent 2]

Shows the curves of the sweep's finished runs, so many at a time, to the scheduler that `tune.stop_early=true` uses. A
run depends on nothing but its values and seed, so a sweep that stops early has the same curves.
"""

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from ray.tune.schedulers import TrialScheduler

from pipelines.sweeps.on_tune import early_stopping
from pipelines.sweeps.sweep import EarlyStopping
from pipelines.sweeps.trials import CURVE, TRIAL_FILE, TrialRecord, read_trial


def replay(records: list[TrialRecord], scheduler: Any, concurrent: int) -> tuple[float, list[TrialRecord]]:
    """Epochs that are trained, and the runs that are trained to their end."""
    waiting, running = list(records), list[tuple[TrialRecord, list[tuple[float, float]]]]()
    epochs, whole = 0.0, list[TrialRecord]()
    while waiting or running:
        while waiting and len(running) < concurrent:
            record = waiting.pop(0)
            running.append((record, list(record.curve)))
            scheduler.on_trial_add(None, SimpleNamespace(trial_id=record.name))
        for one in list(running):
            record, left = one
            epoch, accuracy = left.pop(0)
            result = {"epoch": epoch, CURVE: accuracy}
            verdict = scheduler.on_trial_result(None, SimpleNamespace(trial_id=record.name), result)
            if not left or verdict == TrialScheduler.STOP:
                running.remove(one)
                epochs += epoch
                whole += [] if left else [record]
    return epochs, whole


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--grace", type=float, default=1)
    parser.add_argument("--reduction", type=float, default=3)
    parser.add_argument("--concurrent", type=int, default=2)
    words = parser.parse_args()
    found = [read_trial(path.parent) for path in words.sweep.glob(f"*/{TRIAL_FILE}")]
    records = sorted(
        (one for one in found if one.outcome == "finished"), key=lambda one: (one.seed, list(one.point.values()))
    )
    if not records:
        sys.exit(f"{words.sweep} has no run that was trained to its end")
    early = EarlyStopping(grace=words.grace, reduction=words.reduction, epochs=max(one.epochs for one in records))
    scheduler = early_stopping(early, cast(Any, SimpleNamespace(records={})))
    epochs, whole = replay(records, scheduler, words.concurrent)
    print(f"{epochs:.4g} epochs of {sum(one.epochs for one in records):.4g}; trained to their end:")
    for one in whole:
        print(f"  {one.name}  {100 * (one.score or 0):.2f} %")


if __name__ == "__main__":
    main()
