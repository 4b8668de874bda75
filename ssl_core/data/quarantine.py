"""Samples whose verified bytes do not decode: which they are, why, and when there are too many.

A slot in the order keeps its position and key; `ssl_core.data.reader` shows the next readable sample of the shard
instead. Positions that a checkpoint brought or left are known to all workers; those found since are this worker's own,
so the count of a run is the known ones and the sum of what each worker found. Two workers may find the same one (each
looks for the next readable sample); whoever is to stop a run merges first.
"""

from collections.abc import Mapping
from threading import Lock

from ssl_core.errors import Resumable, UserError

DEFAULT_MAX_BAD = 0.001


class Quarantine:
    """Bad positions and reasons.

    Args:
        num_samples: samples in the data set.
        max_bad: how many distinct positions are borne: a share of the samples (a float up to 1; at least one sample
            unless it is 0) or a count (an int).
    """

    def __init__(self, num_samples: int, *, max_bad: float | int | None = None) -> None:
        max_bad = DEFAULT_MAX_BAD if max_bad is None else max_bad
        if max_bad < 0 or (isinstance(max_bad, float) and max_bad > 1):
            raise UserError(
                f"data.max_bad={max_bad}: give a share of the samples from 0 to 1 or a whole number of samples"
            )
        share = isinstance(max_bad, float)
        self.limit = int(max_bad) if not share else max(1, int(max_bad * num_samples)) if max_bad > 0 else 0
        self._num_samples = num_samples
        self._known: dict[int, str] = {}
        self._found: dict[int, str] = {}
        self._lock = Lock()

    def __contains__(self, position: int) -> bool:
        return position in self._found or position in self._known

    @property
    def count(self) -> int:
        """Distinct bad positions that this worker knows of."""
        return len(self._known) + len(self._found)

    @property
    def num_found(self) -> int:
        """Those among them that this worker has found since the last `restore` or `merge`."""
        return len(self._found)

    def add(self, position: int, reason: str) -> None:
        """List a position; once listed, it stays as it is."""
        with self._lock:
            if position not in self:
                self._found[position] = reason

    def total(self, num_found: int) -> int:
        """Bad positions of a run, given how many all workers together have found since the last merge."""
        return len(self._known) + num_found

    def exceeded(self, num_found: int) -> bool:
        """Whether these are too many."""
        return self.total(num_found) > self.limit

    def stop_if(self, exceeded: bool) -> None:
        """Stop the run, at a step boundary, where there are too many; raises Resumable with an example."""
        if not exceeded:
            return
        listed = sorted(self.snapshot().items())
        example = f", such as position {listed[0][0]} ({listed[0][1]})" if listed else " on other workers"
        raise Resumable(
            f"more than data.max_bad = {self.limit} of {self._num_samples:,} samples do not decode{example}: "
            "pack the data again without them, or raise data.max_bad and give the same command"
        )

    def check(self) -> None:
        """`stop_if` for a single worker."""
        self.stop_if(self.exceeded(self.num_found))

    def snapshot(self) -> dict[int, str]:
        """All that is known, for a checkpoint: position → reason."""
        with self._lock:
            return self._known | self._found

    def restore(self, positions: Mapping[int, str] | Mapping[str, str]) -> None:
        """Know these positions, and no others, as all workers do; keys may be the text that JSON makes of them."""
        with self._lock:
            self._known = {int(position): reason for position, reason in positions.items()}
            self._found = {}

    def merge(self, everything: Mapping[int, str]) -> dict[int, str]:
        """Know what all workers together know; what this worker found meanwhile stays its own.

        Args:
            everything: all workers' snapshots in one.

        Returns:
            What was not known to all before.
        """
        with self._lock:
            new = {position: reason for position, reason in everything.items() if position not in self._known}
            self._known = self._known | new
            self._found = {position: reason for position, reason in self._found.items() if position not in self._known}
            return new
