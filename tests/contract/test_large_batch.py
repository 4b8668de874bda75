"""A large batch gives the same weights in one piece, in micro-batches, and on several workers, over many steps."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gloo_pool import GlooPool
from tiny_runs import build, tiny_run

from ssl_core.collectives import Collectives

pytestmark = pytest.mark.slow
STEPS, BATCH = 20, 512


def train(collectives: Collectives, micro_batch: int | None) -> np.ndarray[Any, np.dtype[np.float64]]:
    """All weights and buffers after 20 steps of SimCLR in fp64."""
    run = tiny_run("simclr")
    run = replace(run, views=replace(run.views, image_size=8))
    step, loader = build(run, collectives, micro_batch=micro_batch, total_steps=STEPS, global_batch=BATCH)
    for batch in loader.stream(0, STEPS):
        step(batch).result()
    return np.concatenate([one.double().numpy().ravel() for one in step.module.state_dict().values()])


def test_one_piece_micro_batches_and_workers_agree(pool: GlooPool) -> None:
    whole = train(Collectives(), None)
    assert np.isfinite(whole).all()
    ways = {"micro-batches of 64": (1, 64), "2 workers": (2, None), "4 workers, micro-batches of 64": (4, 64)}
    for way, (world, micro_batch) in ways.items():
        for found in pool.run(world, train, micro_batch):
            assert np.linalg.norm(found - whole) / np.linalg.norm(whole) <= 1e-9, way
