"""MoCo's queue holds the same keys in the same places whatever the number of workers, and where a run was resumed."""

from pathlib import Path

import pytest
import torch
from gloo_pool import GlooPool
from tiny_runs import STEPS_PER_EPOCH, TinyRun, build, tiny_run
from torch import Tensor

from ssl_core.collectives import Collectives
from ssl_core.methods.moco import MoCo
from ssl_core.train.checkpoint import Checkpoint, CheckpointStore

pytestmark = pytest.mark.slow
STEPS, STOPPED = 20, 2 * STEPS_PER_EPOCH + 1


def train(collectives: Collectives, run: TinyRun, saved: Path | None, first: int, last: int) -> tuple[Tensor, int]:
    """Steps from `first` to `last`, on from a checkpoint and into one where a folder is named: the queue."""
    step, loader = build(run, collectives, total_steps=STEPS)
    if first and saved is not None:
        found, _ = CheckpointStore(saved).newest_readable()
        assert found is not None
        assert found.step == first
        step.module.load_state_dict(found.model)
        step.load_optimizer_state(found.optimizer)
    for batch in loader.stream(first, last):
        step(batch)
    if saved is not None and collectives.rank == 0:
        model, optimizer = step.module.state_dict(), step.optimizer_state()
        CheckpointStore(saved).save(Checkpoint(step=last, model=model, optimizer=optimizer, state={}))
    assert isinstance(step.module, MoCo)
    return step.module.queue.rows.clone(), int(step.module.queue.next)


@pytest.fixture(scope="module")
def alone() -> tuple[Tensor, int]:
    """The queue of one process after all steps."""
    return train(Collectives(), tiny_run("moco"), None, 0, STEPS)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_after_twenty_steps_the_queue_is_that_of_one_process(
    pool: GlooPool, alone: tuple[Tensor, int], tmp_path: Path, world: int
) -> None:
    run = tiny_run("moco")
    whole = pool.run(world, train, run, None, 0, STEPS)
    pool.run(world, train, run, tmp_path, 0, STOPPED)
    resumed = pool.run(world, train, run, tmp_path, STOPPED, STEPS)
    for rows, place in whole:
        torch.testing.assert_close(rows, alone[0], rtol=0, atol=1e-9)
        assert place == alone[1]
    assert all(torch.equal(rows, whole[0][0]) and place == alone[1] for rows, place in [*whole, *resumed])
