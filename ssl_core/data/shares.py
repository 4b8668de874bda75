"""Several data sets in one order: which of their shards an epoch shows, how often, and the part of a shard at an edge.

A data set of N samples and weight w shows exactly n = max(1, round(w · N)) samples in every epoch: all of them n // N
times, and n mod N of them once more. For these its shards are laid in a circle, in an order keyed by the seed alone,
and each epoch takes the arc that begins where that of the epoch before ended. So over any E epochs in a row, but for
their tails, a sample comes ⌊E · n / N⌋ or ⌈E · n / N⌉ times, and an epoch reads whole shards but for the two where its
arc begins and ends.

A *draw* names one showing: the sample's position + its number among the showings in this epoch · the samples of all
sets. What is random about a sample is keyed by the draw, so a sample that is shown again gets other views; the first
showing's draw is the position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from ssl_core import rng

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one data set has of the order."""

    shards: int
    weight: float

    def samples_an_epoch(self, samples: int) -> int:
        """How many draws an epoch has from a set of so many samples."""
        return max(1, round(Fraction(str(self.weight)) * samples)) if samples else 0


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Runs of draws that follow each other, each within one shard."""

    first: Ints  # [pieces]: the draw of a piece's first sample
    samples: Ints  # [pieces]


def samples_an_epoch(shard_samples: Ints, shares: Sequence[Share]) -> int:
    """Draws of an epoch; without shares, every sample once.

    Args:
        shard_samples: int64 [shards], samples of each shard in manifest order.
        shares: of the data sets whose shards these are, in order; none: one set with weight 1.
    """
    if not shares:
        return int(shard_samples.sum())
    parts = _parts(shard_samples, shares)
    return sum(share.samples_an_epoch(int(part.sum())) for share, part in zip(shares, parts, strict=True))


def epoch_pieces(shard_samples: Ints, shares: Sequence[Share], *, seed: int, epoch: int) -> Pieces:
    """What an epoch shows, in manifest order; arguments as for `samples_an_epoch`."""
    starts = np.cumsum(shard_samples) - shard_samples
    if not shares:
        return Pieces(first=starts, samples=shard_samples)
    total = int(shard_samples.sum())
    keys = rng.key(seed, "order.share", np.arange(len(shard_samples)))
    first: list[Ints] = []
    samples: list[Ints] = []
    parts = zip(shares, *(_parts(values, shares) for values in (starts, shard_samples, keys)), strict=True)
    for share, begins, sizes, circle in parts:
        size = int(sizes.sum())
        repeats, rest = divmod(share.samples_an_epoch(size), max(size, 1))
        first += [begins + repeat * total for repeat in range(repeats)]
        samples += [sizes] * repeats
        order = np.tile(np.argsort(circle, kind="stable"), 2)  # twice round: an arc is one stretch of it
        ends = np.cumsum(sizes[order])
        start = epoch * rest % max(size, 1)
        low, high = np.maximum(ends - sizes[order], start), np.minimum(ends, start + rest)
        met = high > low
        first.append((begins[order] + low - (ends - sizes[order]) + repeats * total)[met])
        samples.append((high - low)[met])
    return Pieces(first=np.concatenate(first), samples=np.concatenate(samples))


def _parts(values: Ints, shares: Sequence[Share]) -> list[Ints]:
    """An array with one value a shard, cut into that of each data set."""
    return np.split(values, np.cumsum([share.shards for share in shares])[:-1])
