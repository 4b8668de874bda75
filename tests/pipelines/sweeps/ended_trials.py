"""A sweep's records without a run behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.sweeps.space import Point
from pipelines.sweeps.trials import Trials


def ended_trials(folder: Path, scores: Sequence[tuple[Point, Sequence[float | None]]]) -> Trials:
    """The trials of given points, whose runs came to given scores; None is a run that was stopped early."""

    def config_of(point: Point, seed: int, name: str) -> Mapping[str, Any]:
        return {**point, "seed": seed, "name": name}

    points = [point for point, _ in scores]
    trials = Trials(folder, points, num_points=len(points), seeds=range(len(scores[0][1])), config_of=config_of)
    while (record := trials.next()) is not None:
        score = next(values for point, values in scores if point == record.point)[record.seed]
        epochs, early = (1.0, 0.25) if score is None else (8.0, score)
        outcome: Any = "stopped" if score is None else "finished"
        curve = ((1.0, early / 2), (2.0, early))
        trials.over(replace(record, outcome=outcome, score=early, epochs=epochs, curve=curve))
    return trials
