"""The trials of a sweep: what each is, what it came to, and which comes next; one file a trial: nothing is lost.

`<sweep>/<trial>/trial.json` is written by the driver alone. A trial with an outcome is over; one without is (still, or
again) to be run, and its run continues where it was.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from pipelines.sweeps.learner import Optuna
from pipelines.sweeps.space import Point, trial_name
from ssl_core.errors import UserError
from ssl_core.storage.local import publish_bytes

TRIAL_FILE = "trial.json"
CURVE = "knn_online"  # the k-NN accuracy that a run measures as it trains
Outcome = Literal["finished", "stopped", "failed"]
"""Trained to its end; stopped early by the scheduler; ended by an error that another try would meet again."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What is known of a trial.

    Attributes:
        name: of its folder and its run.
        point: the values that the sweep gives.
        seed: of its run.
        config: all keys of its run, as `pretrain` composes them.
        outcome: None until it is over.
        score: what the sweep compares, a share in [0, 1]; of a stopped one the curve's last value.
        error: the score's standard error over images.
        steps: trained.
        epochs: the same, in epochs.
        images_per_second: of the training.
        reason: why it failed.
        curve: pairs of epoch and k-NN accuracy.
    """

    name: str
    point: Point
    seed: int
    config: Mapping[str, Any]
    outcome: Outcome | None = None
    score: float | None = None
    error: float | None = None
    steps: int = 0
    epochs: float = 0.0
    images_per_second: float = 0.0
    reason: str | None = None
    curve: Sequence[tuple[float, float]] = ()

    def write(self, sweep: Path) -> None:
        """Publish its file below the sweep's folder."""
        path = sweep / self.name / TRIAL_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(path, (json.dumps(vars(self), indent=2) + "\n").encode())


def read_trial(folder: Path) -> TrialRecord:
    """The record of the trial in a folder; raises UserError where it cannot be read."""
    try:
        return TrialRecord(**json.loads((folder / TRIAL_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / TRIAL_FILE} is not the record of a trial: {error}") from error


class Trials:
    """Which trial comes next, and what becomes of each.

    Args:
        folder: the sweep's.
        points: those that are known beforehand.
        learner: proposes more.
        num_points: in all; what earlier commands tried is among them.
        seeds: of the runs of each point.
        config_of: all keys of a run, given its point, seed and name.

    Every point that is known has its first run before one has its second.
    """

    def __init__(
        self,
        folder: Path,
        points: Sequence[Point],
        *,
        learner: Optuna | None = None,
        num_points: int,
        seeds: Sequence[int],
        config_of: Callable[[Point, int, str], Mapping[str, Any]],
    ) -> None:
        self._folder, self._learner = folder, learner
        self._seeds, self._config_of = seeds, config_of
        self._given: set[str] = set()
        self.records = {record.name: record for record in self._read()}
        self.points = list(points)
        for record in self.records.values():
            if record.point not in self.points:
                self.points.append(record.point)
        self._num_points = max(num_points, len(self.points))
        for point in self.points:
            self._tell_if_over(point)

    def next(self) -> TrialRecord | None:
        """A trial that is to be run, and was not given out yet; None where there is none."""
        while True:
            for seed in self._seeds:
                for point in self.points:
                    name = trial_name(point, seed)
                    if name not in self._given and (record := self._record(point, seed, name)).outcome is None:
                        self._given.add(name)
                        return record
            if not self._ask():
                return None

    def over(self, record: TrialRecord) -> None:
        """Note the outcome of a trial."""
        record.write(self._folder)
        self.records[record.name] = record
        self._tell_if_over(record.point)

    def of(self, point: Point) -> list[TrialRecord]:
        """The trials at a point that are there, by seed."""
        return sorted((one for one in self.records.values() if one.point == point), key=lambda one: one.seed)

    @property
    def expected(self) -> int:
        """Trials in all."""
        return self._num_points * len(self._seeds)

    @property
    def left(self) -> int:
        """Trials that are to be run."""
        return self.expected - sum(one.outcome is not None and one.seed in self._seeds for one in self.records.values())

    def _ask(self) -> bool:
        if self._learner is None or len(self.points) >= self._num_points:
            return False
        point = self._learner.ask(self.points)
        if point is None:
            self._num_points = len(self.points)
            return False
        self.points.append(point)
        return True

    def _record(self, point: Point, seed: int, name: str) -> TrialRecord:
        """The trial's record: a new one, or the one there was, with what may have changed about how it runs."""
        record = self.records.get(name)
        if record is None or record.outcome is None:
            config = self._config_of(point, seed, name)
            record = TrialRecord(name=name, point=point, seed=seed, config=config)
            record.write(self._folder)
            self.records[name] = record
        return record

    def _tell_if_over(self, point: Point) -> None:
        if self._learner is None:
            return
        there = [one for one in self.of(point) if one.seed in self._seeds]
        if len(there) == len(self._seeds) and all(one.outcome is not None for one in there):
            scores = [one.score for one in there if one.score is not None and one.outcome != "failed"]
            self._learner.tell(point, mean(scores) if scores else None)

    def _read(self) -> list[TrialRecord]:
        found = [(path.stat().st_mtime, read_trial(path.parent)) for path in self._folder.glob(f"*/{TRIAL_FILE}")]
        return [record for _, record in sorted(found, key=lambda pair: (pair[0], pair[1].name))]


@dataclass(frozen=True, kw_only=True)
class PointScore:
    """What the runs of a point came to.

    Attributes:
        point: the values.
        scores: of the runs that were trained to their end, by seed.
        stopped: runs that were stopped early.
        failed: runs that failed.
        epochs: trained for it in all.
    """

    point: Point
    scores: tuple[float, ...]
    stopped: int
    failed: int
    epochs: float

    @property
    def mean(self) -> float | None:
        """Of the scores; None where no run was trained to its end."""
        return mean(self.scores) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the scores over seeds; None with fewer than two."""
        return stdev(self.scores) if len(self.scores) > 1 else None


def point_scores(trials: Trials) -> list[PointScore]:
    """The points in the order in which they were proposed."""
    found: list[PointScore] = []
    for point in trials.points:
        there = trials.of(point)
        found.append(
            PointScore(
                point=point,
                scores=tuple(one.score for one in there if one.outcome == "finished" and one.score is not None),
                stopped=sum(one.outcome == "stopped" for one in there),
                failed=sum(one.outcome == "failed" for one in there),
                epochs=sum(one.epochs for one in there),
            )
        )
    return found


def winner(scores: Sequence[PointScore]) -> PointScore | None:
    """The best mean among the points with most runs that were trained to their end; None where none was.

    A mean over fewer is no better for it: those that are missing failed, or were stopped for being worse.
    """
    most = max((len(one.scores) for one in scores), default=0)
    judged = [one for one in scores if one.mean is not None and len(one.scores) == most]
    return max(judged, key=lambda one: one.mean or 0.0) if judged else None
