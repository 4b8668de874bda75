"""What `pack verify=<train> against=<val>` says: which validation images the training set has too."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from ssl_core.data.leaks import find_leaks
from ssl_core.data.manifest import Manifest
from ssl_core.data.reader import Reader


def leak_lines(
    train: Manifest,
    val: Manifest,
    *,
    threads: int | None = None,
    done: Callable[[int, int], None] = lambda images, of: None,
) -> list[str]:
    """A line for each leak, with the names of both images, and a last one with the count of each kind."""
    readers = Reader(train), Reader(val)
    leaks = find_leaks(*readers, threads=threads, done=done)
    of_train, of_val = (_Names(reader) for reader in readers)
    lines = [
        f"{leak.kind:<12}  {leak.likeness:.3f}  val {of_val(leak.val)}  train {of_train(leak.train)}" for leak in leaks
    ]
    if not leaks:
        return [f"none of the {val.num_samples:,} images of {val.root} is in {train.root} too"]
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(leak.kind for leak in leaks).most_common())
    share = len(leaks) / val.num_samples
    return [
        *lines,
        f"{len(leaks):,} of {val.num_samples:,} images ({share:.2%}) of {val.root} are in {train.root} too: {kinds}. "
        "Probes of what was trained on it will flatter: leave them out of one of the two",
    ]


class _Names:
    """Where a position lies: its shard and its key there."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._ends = np.cumsum(reader.manifest.shard_samples)

    def __call__(self, position: int) -> str:
        shard = self._reader.manifest.shards[int(np.searchsorted(self._ends, position, side="right"))]
        return f"{shard.name} {self._reader.key(position)}"
