"""Talking to the other workers: the only module that knows `torch.distributed`. At world size 1 nothing moves."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ssl_core.errors import WorkerLost


class Pending(Protocol):
    """A collective operation under way."""

    def wait(self) -> Any:
        """Wait for it: the host for gloo, the device's stream for NCCL."""
        ...


class _Done:
    def wait(self) -> None:
        pass


class _UnderWay:
    def __init__(self, work: Any) -> None:
        self._work = work

    def wait(self) -> None:
        with _peers():
            self._work.wait()


@contextmanager
def _peers() -> Generator[None]:
    """Within: what is raised means that another worker has left, since all call the same with the same shapes."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "CUDA error" in str(error):  # this worker's own, which the device says late
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WorkerLost(f"the connection to another worker is lost ({said})") from error


@dataclass(frozen=True, kw_only=True)
class Collectives:
    """Collective operations of `world` workers over the default process group, as worker `rank` calls them.

    Every worker calls the same operations in the same order. Sums are added in an order that depends on `world` alone,
    so that a repeated run is bit-equal.
    """

    rank: int = 0
    world: int = 1

    def sum_(self, x: Tensor) -> Tensor:
        """Add `x` over all workers, in place."""
        if self.world > 1:
            with _peers():
                dist.all_reduce(x)
        return x

    def start_sum_(self, x: Tensor) -> Pending:
        """Begin `sum_`; `x` is not to be touched before the answer was waited for."""
        if self.world == 1:
            return _Done()
        with _peers():
            return _UnderWay(dist.all_reduce(x, async_op=True))

    def gather_rows(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """Concatenate every worker's rows in rank order.

        Args:
            x: this worker's rows [counts[rank], …], no graph.
            counts: rows of each worker; they may differ.

        Returns:
            [sum(counts), …] on every worker.
        """
        if self.world == 1:
            return x
        longest = max(counts)
        padded = x.new_zeros(longest, *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in counts]
        with _peers():
            dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def exchange_rows(self, x: Tensor, order: Tensor, counts: Sequence[int]) -> Tensor:
        """Regroup the rows of all workers: row i of the result, over all workers, is row `order[i]` of the input.

        Args:
            x: this worker's rows [counts[rank], …], no graph.
            order: int64 [sum(counts)] on the CPU, a permutation, the same on every worker.
            counts: rows of each worker, before and after.

        Returns:
            [counts[rank], …]; every row crossed between workers at most once.
        """
        if self.world == 1:
            return x[order.to(x.device, non_blocking=True)]
        starts = torch.tensor([sum(counts[:rank]) for rank in range(self.world + 1)])
        wanted = order.split(list(counts))
        owners = [torch.bucketize(rows, starts[1:], right=True) for rows in wanted]
        parts = [rows[ranks == self.rank] - starts[self.rank] for rows, ranks in zip(wanted, owners, strict=True)]
        here = owners[self.rank]
        received = torch.bincount(here, minlength=self.world).tolist()
        sent = x[torch.cat(parts).to(x.device, non_blocking=True)].contiguous()
        found = torch.empty_like(sent)
        with _peers():
            dist.all_to_all_single(found, sent, received, [len(part) for part in parts])
        result = torch.empty_like(sent)
        result[here.argsort(stable=True).to(x.device, non_blocking=True)] = found
        return result

    def gather_objects(self, value: Any) -> list[Any]:
        """Every worker's (small) value in rank order, on every worker."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with _peers():
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all workers."""
        if self.world > 1:
            with _peers():
                dist.barrier()


def start_gloo(rank: int, world: int, address: str, *, timeout_seconds: float = 60.0) -> Collectives:
    """Form a gloo group at `tcp://address` (host:port of rank 0); for tests and runs without Ray."""
    dist.init_process_group(
        "gloo", init_method=f"tcp://{address}", rank=rank, world_size=world, timeout=timedelta(seconds=timeout_seconds)
    )
    return Collectives(rank=rank, world=world)


def leave_group() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
