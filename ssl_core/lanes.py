"""Lanes: the global batch is cut into a fixed number of lanes; a worker owns whole lanes.

What peers tie to a GPU (which samples, BatchNorm groups, MoCo's shuffle) is tied to a lane, so a run does not depend
on the number of workers.
"""

from dataclasses import dataclass

from ssl_core.errors import UserError


def default_lane_count(global_batch: int) -> int:
    """The largest power of two that divides `global_batch` and is at most min(64, global_batch / 16), at least 1."""
    count = 1
    while count * 2 <= min(64, global_batch // 16) and global_batch % (count * 2) == 0:
        count *= 2
    return count


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """`count` lanes of `size` samples, as worker `rank` of `world` sees them."""

    count: int
    size: int
    rank: int = 0
    world: int = 1

    @classmethod
    def cut(cls, global_batch: int, count: int | None, *, rank: int = 0, world: int = 1) -> "Lanes":
        """Cut a global batch into lanes; raises UserError where that cannot be done."""
        if global_batch < 1:
            raise UserError(f"train.global_batch={global_batch}: a step takes at least one sample")
        count = default_lane_count(global_batch) if count is None else count
        if count < 1 or global_batch % count:
            raise UserError(
                f"data.lanes={count} does not divide train.global_batch={global_batch}: "
                "choose lanes that divide the batch"
            )
        if not 1 <= world <= count:
            raise UserError(
                f"train.workers={world} with data.lanes={count}: each worker needs at least one lane, so use between "
                f"1 and {count} workers or more lanes"
            )
        return cls(count=count, size=global_batch // count, rank=rank, world=world)

    def of(self, rank: int) -> range:
        """The lanes that a worker owns: contiguous, and counts differ by at most one."""
        return range(rank * self.count // self.world, (rank + 1) * self.count // self.world)

    @property
    def owned(self) -> range:
        """This worker's lanes."""
        return self.of(self.rank)

    @property
    def counts(self) -> list[int]:
        """Lanes per worker, in rank order."""
        return [len(self.of(rank)) for rank in range(self.world)]

    @property
    def global_batch(self) -> int:
        """Samples per step over all workers."""
        return self.count * self.size

    @property
    def efficiency(self) -> float:
        """Share of the workers' time that is used when all lanes cost the same: C / (W · ⌈C / W⌉)."""
        return self.count / (self.world * max(self.counts))
