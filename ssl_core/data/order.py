"""Which samples a lane sees at a step: computed, not iterated, and without I/O.

Per epoch, shards are permuted, grouped into blocks of at least `block` samples, and samples are permuted within a
block. The resulting sequence is cut into C equal lanes; lane c reads its part from front to back, b samples a step.
The tail of less than one global batch, different each epoch, is left out. Making an epoch costs O(shards), a batch
O(log shards) a sample, and any step can be reached directly. Positions count samples in manifest order; where several
data sets have different weights (`ssl_core.data.shares`), what is ordered are draws instead of positions.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from ssl_core import rng
from ssl_core.data.shares import Share, epoch_pieces, samples_an_epoch
from ssl_core.errors import UserError

_ROUNDS = 4


def permute(index: np.ndarray, size: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Keyed pseudo-random permutations, evaluated pointwise.

    A balanced Feistel network over the smallest square domain of at least `size` elements, walked along its cycles
    until it lands inside (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).

    Args:
        index: int64 [n], each in [0, size).
        size: int64 [n], the length of each element's permutation.
        keys: int64 [n], the key of each element's permutation.

    Returns:
        int64 [n], each in [0, size); elements with equal size and key map one to one.
    """
    half = np.maximum(1, (np.ceil(np.log2(np.maximum(size, 2))).astype(np.int64) + 1) // 2)
    result = index.astype(np.int64)
    outside = np.arange(len(result))
    while len(outside):
        result[outside] = _feistel(result[outside], half[outside], keys[outside])
        outside = outside[result[outside] >= size[outside]]
    return result


def _feistel(x: np.ndarray, half: np.ndarray, keys: np.ndarray) -> np.ndarray:
    mask = (np.int64(1) << half) - 1
    left, right = x >> half, x & mask
    with np.errstate(over="ignore"):
        for turn in range(1, _ROUNDS + 1):
            left, right = right, left ^ (rng.mix(rng.mix(right + keys) + turn) & mask)
    return (left << half) | right


class EpochOrder:
    """The order of one epoch.

    Args:
        shard_samples: int64 [shards], samples of each shard in manifest order; zeros are allowed.
        seed: the run's seed.
        epoch: which epoch.
        num_lanes: C.
        lane_size: b.
        block: samples that are mixed together at least.
        shares: what each of several data sets has of the epoch; none: every sample once.
    """

    def __init__(
        self,
        shard_samples: np.ndarray,
        *,
        seed: int,
        epoch: int,
        num_lanes: int,
        lane_size: int,
        block: int,
        shares: Sequence[Share] = (),
    ) -> None:
        if block < 1:
            raise UserError(f"data.block={block}: at least one sample is mixed at a time")
        sizes = np.asarray(shard_samples, dtype=np.int64)
        self.num_lanes, self.lane_size = num_lanes, lane_size
        self.num_samples = int(sizes.sum())
        self.steps = steps_per_epoch(samples_an_epoch(sizes, shares), num_lanes * lane_size)
        pieces = epoch_pieces(sizes, shares, seed=seed, epoch=epoch)
        permuted = np.argsort(rng.key(seed, "order.shard", epoch, np.arange(len(pieces.first))), kind="stable")
        # where each permuted piece ends in the epoch's sequence, and how far that is from its draws
        samples = pieces.samples[permuted]
        ends = np.cumsum(samples)
        self._piece_ends = ends
        self._to_draw = pieces.first[permuted] - (ends - samples)
        self._block_starts = _block_starts(ends, block)
        self._block_sizes = np.diff(np.append(self._block_starts, ends[-1]))
        self._block_keys = rng.key(seed, "order.block", epoch, np.arange(len(self._block_starts)))

    def positions(self, step: int, lanes: range) -> np.ndarray:
        """Samples that `lanes` see at `step` of this epoch: int64 [len(lanes), b], positions in manifest order."""
        return self.draws(step, lanes) % self.num_samples

    def draws(self, step: int, lanes: range) -> np.ndarray:
        """The same as draws, no two alike in an epoch: int64 [len(lanes), b], position + earlier showings · samples."""
        per_lane = self.steps * self.lane_size
        start = np.asarray(lanes, dtype=np.int64)[:, None] * per_lane + step * self.lane_size
        place = (start + np.arange(self.lane_size)).ravel()
        block = np.searchsorted(self._block_starts, place, side="right") - 1
        first = self._block_starts[block]
        place = first + permute(place - first, self._block_sizes[block], self._block_keys[block])
        piece = np.searchsorted(self._piece_ends, place, side="right")
        return (place + self._to_draw[piece]).reshape(len(lanes), self.lane_size)

    def shards_per_block(self) -> int:
        """The most shards that one block holds: with one more, what a lane needs at hand."""
        firsts = np.searchsorted(self._piece_ends, self._block_starts, side="right")
        return int(np.diff(np.append(firsts, len(self._piece_ends))).max())


def _block_starts(ends: np.ndarray, block: int) -> np.ndarray:
    """Starts of groups of whole pieces with at least `block` samples each; a short last group joins the one before."""
    starts, places = [0], ends.tolist()
    while True:
        last = bisect_left(places, starts[-1] + block)  # the piece that fills this block
        if last == len(places) or places[-1] - places[last] < block:
            return np.asarray(starts, dtype=np.int64)
        starts.append(places[last])


def steps_per_epoch(num_samples: int, global_batch: int) -> int:
    """Whole global batches in an epoch; raises UserError where there is not even one."""
    if num_samples < global_batch:
        raise UserError(
            f"train.global_batch={global_batch} is larger than data.train with its {num_samples} samples: "
            "use a smaller batch"
        )
    return num_samples // global_batch
