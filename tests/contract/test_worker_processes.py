"""What workers do together, between real processes: sums, gathers of unequal length, rows that are hard to gather."""

from typing import Any

import numpy as np
import pytest
import torch
from gloo_pool import GlooPool, TaskFailed
from torch import Tensor, nn

from ssl_core.collectives import Collectives
from ssl_core.lanes import Lanes
from ssl_core.methods.base import StepInfo
from ssl_core.nn.backbones import Encoder
from ssl_core.optim import OptimConfig
from ssl_core.train.step import StepConfig, TrainStep
from ssl_core.types import GlobalRows, LaneBatch, ViewBatch

pytestmark = pytest.mark.slow


def collect(collectives: Collectives) -> dict[str, Any]:
    rank, world = collectives.rank, collectives.world
    counts = [2 * (one + 1) for one in range(world)]
    own = torch.arange(counts[rank] * 3).view(-1, 3) + 100 * rank
    sums = torch.full((2, 2), float(10**rank))
    returned = collectives.sum_(sums)
    collectives.barrier()
    return {
        "sum": sums.tolist(),
        "in place": returned is sums,
        "rows": collectives.gather_rows(own, counts).tolist(),
        "flags": collectives.gather_rows(own[:, 0] % 2 == 0, counts).tolist(),
        "objects": collectives.gather_objects({"rank": rank}),
    }


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_worker_has_the_sum_and_all_rows_in_order(pool: GlooPool, world: int) -> None:
    found = pool.run(world, collect)
    blocks = [np.arange(2 * (rank + 1) * 3).reshape(-1, 3) + 100 * rank for rank in range(world)]
    rows = np.concatenate(blocks)
    assert (
        found
        == [
            {
                "sum": [[sum(10.0**rank for rank in range(world))] * 2] * 2,
                "in place": True,
                "rows": rows.tolist(),
                "flags": (rows[:, 0] % 2 == 0).tolist(),
                "objects": [{"rank": rank} for rank in range(world)],
            }
        ]
        * world
    )


def test_one_process_needs_no_group() -> None:
    alone = Collectives()
    x = torch.ones(3, 2)
    assert alone.gather_rows(x, [3]) is x
    assert alone.sum_(x) is x
    assert alone.gather_objects("a") == ["a"]
    alone.barrier()


class HardRows(nn.Module):
    """Two rows whose gradients autograd shares, one whose gradient has no memory of its own, a target, and numbers."""

    recipe: Any = None
    per_sample = False
    shuffled_view: int | None = None

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 3)
            self.target = nn.Linear(4, 3).requires_grad_(False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def embed(self, batch: ViewBatch) -> dict[str, Tensor]:
        images = batch.images["views"]
        z = self.encoder(images)
        return {
            "a": z,
            "b": z**2,
            "error": (z**3).sum(1),
            "target": self.target(images.flatten(1)),
            "position": batch.draws,
        }

    def loss(self, rows: GlobalRows) -> Tensor:
        own = {name: rows.rows[name][rows.own(name)] for name in rows.rows}
        share = len(own["a"]) / len(rows.rows["a"])
        difference = ((rows.rows["a"] + rows.rows["b"])[rows.own("a")] * own["target"]).sum()
        return difference / len(rows.rows["a"]) + own["error"].mean() * share

    def before_step(self, info: StepInfo) -> None:
        pass

    def after_step(self, rows: GlobalRows, keep: Tensor) -> None:
        self.seen += rows.rows["position"].sum() * keep


def hard_step(collectives: Collectives, micro_batch: int | None) -> tuple[float, list[float], int]:
    lanes = Lanes.cut(16, 8, rank=collectives.rank, world=collectives.world)
    positions = np.arange(16).reshape(8, 2)[lanes.owned] + 2**40
    pixels = (np.arange(64).reshape(8, 1, 2, 2, 2, 1) * 37 % 256).astype(np.uint8)[lanes.owned]
    batch = LaneBatch(step=0, epoch=0, positions=positions, draws=positions, groups={"views": pixels})
    method = HardRows()
    step = TrainStep(
        method,
        StepConfig(total_steps=1, precision="fp64", micro_batch=micro_batch),
        optim=OptimConfig(name="sgd"),
        lanes=lanes,
        collectives=collectives,
        device=torch.device("cpu"),
    )
    result = step(batch, signals=(1.0, float(collectives.rank))).result()
    assert result.signals == (collectives.world, sum(range(collectives.world)))
    gradient = torch.cat([p.grad.flatten() for p in method.encoder.parameters() if p.grad is not None])
    return result.loss, gradient.tolist(), int(method.seen)


@pytest.mark.parametrize("micro_batch", [None, 2, 4, 6])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_hard_rows_give_the_gradient_of_one_process(pool: GlooPool, world: int, micro_batch: int | None) -> None:
    loss, gradient, seen = hard_step(Collectives(), None)
    assert seen == sum(range(16)) + 16 * 2**40
    for found_loss, found_gradient, found_seen in pool.run(world, hard_step, micro_batch):
        assert found_loss == pytest.approx(loss, rel=1e-12)
        assert found_gradient == pytest.approx(gradient, rel=1e-11)
        assert found_seen == seen


def fail_on_one(collectives: Collectives) -> None:
    if collectives.rank == 1:
        raise ZeroDivisionError("on rank 1")


def test_the_pool_says_what_a_worker_said(pool: GlooPool) -> None:
    with pytest.raises(TaskFailed, match="ZeroDivisionError: on rank 1"):
        pool.run(2, fail_on_one)
