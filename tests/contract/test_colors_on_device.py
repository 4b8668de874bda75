"""Colours given on the device: the views are the loader's, whatever worker sees them, in however many pieces."""

from typing import Any

import numpy as np
import pytest
from gloo_pool import GlooPool
from tiny_runs import GLOBAL_BATCH, build, tiny_run

from ssl_core.collectives import Collectives
from ssl_core.methods import METHODS

STEPS = 3
Vector = np.ndarray[Any, np.dtype[np.float64]]


def losses_of(collectives: Collectives, name: str, micro_batch: int | None, on_device: bool) -> Vector:
    step, loader = build(tiny_run(name), collectives, micro_batch=micro_batch, colors_on_device=on_device)
    return np.asarray([step(batch).result().loss for batch in loader.stream(0, STEPS)])


@pytest.mark.parametrize("name", METHODS)
def test_workers_and_micro_batches_see_what_one_process_sees(pool: GlooPool, name: str) -> None:
    alone = losses_of(Collectives(), name, None, True)
    for world, micro_batch in ((1, 4), (2, None), (3, 2)):
        for found in pool.run(world, losses_of, name, micro_batch, True):
            assert np.abs(found / alone - 1).max() <= 1e-9


@pytest.mark.parametrize("name", METHODS)
def test_the_first_loss_is_that_of_the_loaders_views(name: str) -> None:
    on_device, in_loader = (losses_of(Collectives(), name, None, where)[0] for where in (True, False))
    assert on_device == pytest.approx(in_loader, rel=2e-3)  # rounding of colours, to a level of 255


def test_the_features_of_a_health_check_are_those_of_the_coloured_views() -> None:
    found: list[Vector] = []
    for on_device in (True, False):
        step, loader = build(tiny_run("simclr"), Collectives(), colors_on_device=on_device)
        found.append(step.features(loader.batch(0), samples=GLOBAL_BATCH).numpy().astype(np.float64))
    assert np.linalg.norm(found[0] - found[1]) <= 2e-2 * np.linalg.norm(found[1])
    step, loader = build(tiny_run("simclr"), Collectives(), colors_on_device=True)
    step._colors = None  # pyright: ignore[reportPrivateUsage] (the fault: crops shown as they are)
    plain = step.features(loader.batch(0), samples=GLOBAL_BATCH).numpy()
    assert np.linalg.norm(plain - found[1]) > 0.1 * np.linalg.norm(found[1])
