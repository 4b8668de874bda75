"""Seeded subsets of labelled data; every class has its share, and who is in them depends on seed and position alone."""

import numpy as np
from numpy.typing import NDArray

from ssl_core import rng
from ssl_core.errors import UserError

Positions = NDArray[np.int64]


def label_subset(labels: Positions, fraction: float, *, classes: int, seed: int, index: int) -> Positions:
    """A stratified share of the labelled samples, for a probe with few labels.

    Args:
        labels: int64 [n]; -1 for no label.
        fraction: the share of each class, in (0, 1]; at least one sample of every class that has any.
        classes: how many classes there are.
        seed: the run's seed.
        index: which of the subsets of this size.

    Returns:
        int64 positions in `labels`, ascending.

    Raises:
        UserError: the fraction is outside (0, 1], or a label is outside the classes.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"a label share of {fraction} cannot be taken: give one above 0 and up to 1")
    if len(labels) and int(labels.max()) >= classes:
        raise UserError(f"label {int(labels.max())} with {classes} classes: labels run from 0 to {classes - 1}")
    order = _shuffled_classes(labels, rng.key(seed, "probe.subset", index, np.arange(len(labels))))
    chosen = [members[: max(1, round(fraction * len(members)))] for members in order]
    return _joined(chosen)


def holdout_split(
    labels: Positions, fraction: float, *, seed: int, purpose: str = "probe.holdout"
) -> tuple[Positions, Positions]:
    """Cut the labelled samples in two, class by class.

    Args:
        labels: int64 [n]; -1 for no label (in neither part).
        fraction: the share that is held out, in (0, 1). A class with two samples or more has at least one in each
            part; a single sample stays.
        seed: the run's seed.
        purpose: what the split is for; splits with different purposes are independent.

    Returns:
        (kept, held out): int64 positions in `labels`, ascending.
    """
    if not 0 < fraction < 1:
        raise UserError(f"a share of {fraction} cannot be held out: give one between 0 and 1")
    order = _shuffled_classes(labels, rng.key(seed, purpose, np.arange(len(labels))))
    cuts = [min(len(members) - 1, max(1, round(fraction * len(members)))) for members in order]
    kept = _joined([members[cut:] for members, cut in zip(order, cuts, strict=True)])
    held = _joined([members[:cut] for members, cut in zip(order, cuts, strict=True)])
    return kept, held


def _shuffled_classes(labels: Positions, keys: NDArray[np.int64]) -> list[Positions]:
    """The positions of each class that has any, in the order of their keys."""
    order = np.lexsort((keys, labels))
    order = order[labels[order] >= 0]
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []


def _joined(parts: list[Positions]) -> Positions:
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *parts]))
