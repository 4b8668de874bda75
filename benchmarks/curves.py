"""How do loss and k-NN accuracy go along a run?

    python benchmarks/curves.py <run folder> … --output curves.png

One row a run, named by its folder: the loss (a point every `train.log_every` steps, and its mean over a fiftieth of the
run), and the online k-NN accuracy with the final probe's k-NN, its random encoder and raw pixels as levels. The k-NN of
the curve has a smaller bank and smaller validation set (`probe.online_train`, `probe.online_val`) than the final probe.
Losses of different methods do not compare, so each has its own axis; accuracies share theirs.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_core.train.records import join_parts

LEVELS = {"pretrained": "-", "random encoder": "--", "raw pixels": ":"}


def draw_loss(place: Axes, lines: list[dict[str, Any]]) -> None:
    """Every point, and a running mean."""
    epochs, losses = (np.array([line[name] for line in lines]) for name in ("epoch", "loss"))
    width = max(1, len(losses) // 50)
    place.plot(epochs, losses, linewidth=0.5, alpha=0.4)
    means = np.convolve(losses, np.full(width, 1 / width), "valid")
    place.plot(epochs[width - 1 :], means, color="C0")
    low, high = np.quantile(losses, [0.01, 0.98])
    place.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def draw_accuracy(place: Axes, lines: list[dict[str, Any]], final: dict[str, float]) -> None:
    """The curve, and where the final probe ended."""
    points = [(line["epoch"], 100 * line["knn_online"]) for line in lines if "knn_online" in line]
    place.plot(*zip(*points, strict=True), marker="o", markersize=3, color="C1", label="online")
    for name, style in LEVELS.items():
        place.axhline(100 * final[name], color="0.4", linewidth=1, linestyle=style, label=name)


def final_knn(folder: Path) -> dict[str, float]:
    """k-NN 20 of the final probe by encoder."""
    report = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
    return {encoder: row["knn20"]["value"] for encoder, row in report["rows"].items()}


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    runs: list[Path] = arguments.runs
    figure = Figure(figsize=(9, 2.4 * len(runs)), layout="constrained")
    places = figure.subplots(len(runs), 2, squeeze=False)
    for run, (loss, accuracy) in zip(runs, places, strict=True):
        lines = join_parts(run, "metrics")
        draw_loss(loss, lines)
        draw_accuracy(accuracy, lines, final_knn(run))
        loss.set_title(f"{run.name}: loss")
        accuracy.set_title(f"{run.name}: k-NN accuracy in %")
        accuracy.set_ylim(20, 75)
        for place in (loss, accuracy):
            place.set_xlabel("epoch")
            place.set_xlim(left=0)
            place.grid(alpha=0.3)
    places[0, 1].legend(fontsize="small")
    figure.savefig(arguments.output, dpi=80)


if __name__ == "__main__":
    main()
