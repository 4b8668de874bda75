"""Early stopping on the k-NN curve, also with what earlier commands found; Ray Tune's scheduler without a Ray."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from ray.tune.schedulers import TrialScheduler

from pipelines.sweeps.on_tune import early_stopping
from pipelines.sweeps.sweep import EarlyStopping
from tests.pipelines.sweeps.ended_trials import ended_trials

EARLY = EarlyStopping(grace=2, reduction=2, epochs=8)
POINTS = [{"t": value} for value in (0.1, 0.2, 0.3, 0.4)]


def verdict(scheduler: Any, name: str, epoch: float, score: float) -> str:
    trial = cast(Any, SimpleNamespace(trial_id=name))
    scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {"epoch": epoch, "knn_online": score})


def test_a_run_below_the_better_half_of_those_before_is_stopped_from_the_grace_on(tmp_path: Path) -> None:
    nobody = early_stopping(EARLY, ended_trials(tmp_path, [({"t": 1}, ())]))
    assert verdict(nobody, "first", 2.0, 0.1) == TrialScheduler.CONTINUE
    assert verdict(nobody, "worse", 2.0, 0.05) == TrialScheduler.STOP
    assert verdict(nobody, "early", 1.9, 0.01) == TrialScheduler.CONTINUE


def test_curves_of_earlier_commands_count(tmp_path: Path) -> None:
    four = ended_trials(
        tmp_path, [(point, (score,)) for point, score in zip(POINTS, (0.5, 0.6, 0.7, 0.8), strict=True)]
    )
    assert verdict(early_stopping(EARLY, four), "new", 2.0, 0.64) == TrialScheduler.STOP
    assert verdict(early_stopping(EARLY, four), "new", 2.0, 0.66) == TrialScheduler.CONTINUE


def test_a_result_without_a_curve_is_no_reason_to_stop(tmp_path: Path) -> None:
    scheduler = early_stopping(EARLY, ended_trials(tmp_path, [(point, (0.9,)) for point in POINTS]))
    trial = cast(Any, SimpleNamespace(trial_id="failed"))
    scheduler.on_trial_add(cast(Any, None), trial)
    assert scheduler.on_trial_result(cast(Any, None), trial, {"outcome": "failed"}) == TrialScheduler.CONTINUE
