"""Which trial is next, what a killed driver leaves, and who wins: on records alone, without Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.sweeps.learner import Optuna
from pipelines.sweeps.space import Parameter, Point
from pipelines.sweeps.trials import TrialRecord, Trials, point_scores, read_trial, winner
from ssl_core.errors import UserError

POINTS: Sequence[Point] = ({"t": 0.1}, {"t": 0.5}, {"t": 1.0})


def trials_in(folder: Path, learner: Optuna | None = None, *, seeds: range = range(2), count: int = 3) -> Trials:
    def config_of(point: Point, seed: int, name: str) -> Mapping[str, Any]:
        return {**point, "seed": seed, "name": name}

    points = POINTS if learner is None else ()
    return Trials(folder, points, learner=learner, num_points=count, seeds=seeds, config_of=config_of)


def end(trials: Trials, record: TrialRecord, score: float | None, outcome: Any = "finished") -> None:
    trials.over(replace(record, outcome=outcome, score=score, epochs=2.0))


def given(trials: Trials) -> list[str]:
    names: list[str] = []
    while (record := trials.next()) is not None:
        names.append(record.name)
    return names


def test_every_point_has_its_first_run_before_one_has_its_second(tmp_path: Path) -> None:
    trials = trials_in(tmp_path)
    names = [f"t-{value}-seed-{seed}" for seed in (0, 1) for value in (0.1, 0.5, 1.0)]
    first = trials.next()
    assert first is not None
    assert read_trial(tmp_path / first.name).config == {"t": 0.1, "seed": 0, "name": first.name}
    assert [first.name, *given(trials)] == names


def test_what_is_over_is_not_given_out_again_and_what_was_interrupted_is(tmp_path: Path) -> None:
    before = trials_in(tmp_path)
    outcomes = ("finished", "stopped", "failed", None)
    for outcome in outcomes:
        record = before.next()
        assert record is not None
        end(before, record, 0.5, outcome)
    again = trials_in(tmp_path)
    assert again.left == 3
    assert given(again) == ["t-0.1-seed-1", "t-0.5-seed-1", "t-1.0-seed-1"]
    assert given(trials_in(tmp_path, seeds=range(3)))[-3:] == ["t-0.1-seed-2", "t-0.5-seed-2", "t-1.0-seed-2"]


def test_the_winner_has_the_best_mean_of_runs_in_full(tmp_path: Path) -> None:
    trials = trials_in(tmp_path)
    scores = {"t-0.1": (0.5, 0.6), "t-0.5": (0.7, 0.44), "t-1.0": (0.9, 0.9)}
    while (record := trials.next()) is not None:
        score = scores[record.name[:5]][record.seed]
        end(trials, record, score, "stopped" if record.point == {"t": 1.0} else "finished")
    first, second, third = point_scores(trials)
    assert (first.mean, second.mean) == (pytest.approx(0.55), pytest.approx(0.57))
    assert first.deviation == pytest.approx(0.0707, abs=1e-4)
    assert (third.mean, third.stopped, third.epochs) == (None, 2, 4.0)
    assert winner([first, second, third]) is second
    assert winner([third]) is None


def test_a_point_does_not_win_by_losing_its_bad_seeds(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, count=2)
    scores = {("t-0.1", 0): 0.7, ("t-0.1", 1): 0.7, ("t-0.5", 0): 0.72, ("t-0.5", 1): None}
    while (record := trials.next()) is not None:
        score = scores.get((record.name[:5], record.seed))
        end(trials, record, score, "failed" if score is None else "finished")
    best = winner(point_scores(trials))
    assert best is not None
    assert best.point == {"t": 0.1}


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t/trial.json").write_text('{"name": ')
    with pytest.raises(UserError, match=r"t/trial.json is not the record of a trial"):
        trials_in(tmp_path)


def optuna_search() -> Optuna:
    return Optuna([Parameter(key="t", kind="uniform", values=(0.0, 1.0))], seed=0)


@pytest.mark.parametrize("killed_after", [3, 8])
def test_a_search_that_learns_has_all_its_points_whenever_its_driver_was_killed(
    tmp_path: Path, killed_after: int
) -> None:
    tried: list[Point] = []
    for most in (killed_after, 20):
        trials = trials_in(tmp_path, optuna_search(), seeds=range(1), count=20)
        while len(tried) < most and (record := trials.next()) is not None:
            tried.append(record.point)
            end(trials, record, 0.5)
    assert len(trials.records) == len(tried) == 20
    assert trials_in(tmp_path, optuna_search(), seeds=range(1), count=20).left == 0


def test_a_search_that_learns_ends_where_there_is_nothing_new(tmp_path: Path) -> None:
    two = Optuna([Parameter(key="t", kind="values", values=(0.1, 0.2))], seed=0)
    trials = trials_in(tmp_path, two, seeds=range(1), count=5)
    assert sorted(given(trials)) == ["t-0.1-seed-0", "t-0.2-seed-0"]
    assert trials.expected == 2


def test_a_search_that_learns_goes_where_it_was_good_also_after_its_driver_was_killed(tmp_path: Path) -> None:
    tried: list[float] = []
    for command in range(4):  # each of them killed after ten runs, the next one with one more under way
        trials = trials_in(tmp_path, optuna_search(), seeds=range(1), count=40)
        for _ in range(10):
            record = trials.next()
            assert record is not None
            tried.append(record.point["t"])
            end(trials, record, 1 - abs(record.point["t"] - 0.3))
        if command < 3:
            trials.next()
    assert trials_in(tmp_path, optuna_search(), seeds=range(1), count=40).left == 0
    assert len({round(value, 12) for value in tried}) == 40
    late = [abs(value - 0.3) for value in tried[20:]]
    early = [abs(value - 0.3) for value in tried[:10]]
    assert sum(late) / len(late) < 0.6 * sum(early) / len(early)


def test_a_point_without_a_score_does_not_stop_a_search_that_learns(tmp_path: Path) -> None:
    trials = trials_in(tmp_path, optuna_search(), seeds=range(2), count=3)
    while (record := trials.next()) is not None:
        end(trials, record, None, "failed")
    assert len(trials.records) == 6
    assert winner(point_scores(trials)) is None
