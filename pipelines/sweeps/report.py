"""What came out of a sweep: a table, a picture of score against value, and the command that trains the winner."""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipelines.sweeps.space import Parameter, point_name, words_of
from pipelines.sweeps.trials import CURVE, PointScore, Trials, point_scores, winner

TITLES = {
    CURVE: "k-NN 20",
    "knn20": "k-NN 20",
    "knn200": "k-NN 200",
    "linear": "linear",
    "linear_1pct": "linear, 1 % of labels",
    "linear_10pct": "linear, 10 % of labels",
}
"""What a sweep may be judged by, as it is called in tables."""


def table(trials: Trials, parameters: Sequence[Parameter], metric: str) -> str:
    """Markdown: a row a point, in the order in which they were proposed, the winner marked."""
    scores = point_scores(trials)
    best = winner(scores)
    head = [*(one.key for one in parameters), f"{TITLES[metric]}, %", "over seeds", "runs", "epochs"]
    rows = [
        [
            *(shown(one.point[key.key]) if key.key in one.point else "as configured" for key in parameters),
            _score(one, one is best),
            "" if one.deviation is None else f"± {100 * one.deviation:.2f}",
            _runs(one),
            f"{one.epochs:.4g}",
        ]
        for one in scores
    ]
    widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in [head, *rows]]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _score(score: PointScore, best: bool) -> str:
    if score.mean is None:
        return "–"
    text = f"{100 * score.mean:.2f}"
    return f"**{text}**" if best else text


def _runs(score: PointScore) -> str:
    parts = [f"{len(score.scores)} whole"]
    parts += [f"{score.stopped} stopped early"] if score.stopped else []
    parts += [f"{score.failed} failed"] if score.failed else []
    return ", ".join(parts)


def shown(value: Any) -> str:
    """A value as people read it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, kw_only=True)
class InFull:
    """The winner as a run of its own.

    Attributes:
        name: of the run.
        overrides: of `pretrain`.
        command: the same for a shell.
    """

    name: str
    overrides: Sequence[str]
    command: str


def in_full(trials: Trials, words: Sequence[str], sweep: str) -> InFull | None:
    """How to train the winner in full; None without one.

    Args:
        trials: of the sweep.
        words: overrides that the sweep shares with `pretrain`.
        sweep: its name.
    """
    best = winner(point_scores(trials))
    if best is None:
        return None
    name = f"{sweep}-best-{point_name(best.point)}"  # a sweep that is extended may find another one
    overrides = [*words, *words_of(best.point), f"name={name}"]
    return InFull(
        name=name, overrides=overrides, command=shlex.join(["python", "-m", "pipelines.pretrain", *overrides])
    )


def draw(trials: Trials, parameters: Sequence[Parameter], metric: str, path: Path) -> Path:
    """Score against value, a panel a key: every run a dot (hollow: stopped early), the means with their spread a line.

    Returns:
        The PNG file.
    """
    from matplotlib.figure import Figure

    scores = point_scores(trials)
    varied = [one for one in parameters if len({repr(score.point.get(one.key)) for score in scores}) > 1] or parameters
    figure = Figure(figsize=(1.0 + 4.2 * len(varied), 3.8), layout="constrained")
    panels = cast(Any, figure.subplots(1, len(varied), squeeze=False, sharey=True))[0]
    for panel, parameter in zip(panels, varied, strict=True):
        _panel(panel, parameter, trials, scores)
    panels[0].set_ylabel(f"{TITLES[metric]} on held-out training images, %")
    figure.savefig(path, dpi=130)
    return path


def _panel(panel: Any, parameter: Parameter, trials: Trials, scores: Sequence[PointScore]) -> None:
    key = parameter.key
    there = [score for score in scores if key in score.point]
    place = _places(parameter, panel)
    for whole, face in ((True, "C0"), (False, "none")):
        dots = [
            (place(score.point[key]), 100 * one.score)
            for score in there
            for one in trials.of(score.point)
            if one.score is not None and one.outcome == ("finished" if whole else "stopped")
        ]
        label = "a run" if whole else "stopped early"
        if dots:
            panel.scatter(*zip(*dots, strict=True), s=18, facecolors=face, edgecolors="C0", alpha=0.6, label=label)
    alone = [score for score in there if len(score.point) == 1 or len(parameter.values) == len(there)]
    means = sorted((place(one.point[key]), 100 * one.mean, 100 * (one.deviation or 0.0)) for one in alone if one.mean)
    if len(means) > 1:
        x, y, spread = zip(*means, strict=True)
        panel.errorbar(x, y, yerr=spread, color="C1", capsize=3, label="mean ± deviation over seeds")
    panel.set_xlabel(key)
    panel.grid(alpha=0.3)
    if there:
        panel.legend(fontsize=8)


def _places(parameter: Parameter, panel: Any) -> Callable[[Any], float]:
    """Where a value lies on the axis: numbers on a scale, anything else side by side."""
    numbers = [one for one in parameter.values if type(one) in (int, float)]
    if len(numbers) == len(parameter.values):
        if min(numbers) > 0 and max(numbers) / min(numbers) >= 8:
            panel.set_xscale("log")
            if parameter.kind == "values":
                panel.set_xticks(numbers, [shown(one) for one in numbers], minor=False)
                panel.minorticks_off()
        return float
    panel.set_xticks(range(len(parameter.values)), [str(one) for one in parameter.values])
    return lambda value: float(parameter.values.index(value)) if value in parameter.values else math.nan
