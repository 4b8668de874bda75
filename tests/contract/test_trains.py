"""Every method learns something of real images within 300 steps, and its features do not collapse."""

from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tiny_runs import SEED, tiny_run

from ssl_core.collectives import Collectives
from ssl_core.data.loader import LaneLoader, Schedule
from ssl_core.lanes import Lanes
from ssl_core.methods import METHODS, build_method
from ssl_core.methods.base import as_module
from ssl_core.nn.backbones import build_encoder
from ssl_core.nn.lane_batch_norm import use_lane_batch_norm
from ssl_core.optim import OptimConfig
from ssl_core.train.health import CollapseWatch, measure
from ssl_core.train.step import StepConfig, TrainStep
from ssl_core.views.recipes import CropRecipe

pytestmark = pytest.mark.slow
STEPS, BATCH = 300, 64


class Digits:
    """Handwritten digits, 8 × 8, as RGB."""

    def __init__(self) -> None:
        pixels: Any = load_digits(return_X_y=True)[0]
        self._pixels = (pixels.reshape(-1, 8, 8, 1) * 15.9375).astype(np.uint8).repeat(3, -1)

    def image(self, position: int) -> np.ndarray[Any, Any]:
        return self._pixels[position]


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_falls_and_features_stay_apart(name: str) -> None:
    run = tiny_run(name)
    views = replace(run.views, flip=0.0, grey=0.0, scale=(0.5, 1.0), solarise=0.0, blur=0.0)
    method = build_method(
        name, run.method, encoder=build_encoder(run.model, seed=SEED), recipe=CropRecipe.of(views), seed=SEED
    )
    use_lane_batch_norm(as_module(method))
    lanes = Lanes.cut(BATCH, 4, rank=0, world=1)
    step = TrainStep(
        method,
        StepConfig(total_steps=STEPS, seed=SEED, mean=(0.3,) * 3, std=(0.37,) * 3),
        optim=OptimConfig(name="adamw", base_rate=3e-3, scaling="none", warmup=0.1),
        lanes=lanes,
        collectives=Collectives(),
        device=torch.device("cpu"),
    )
    schedule = Schedule(shard_samples=np.asarray([1000, 500]), seed=SEED, block=256, lanes=lanes)
    losses: list[float] = []
    complaints: list[str | None] = []
    watch = CollapseWatch()
    for batch in LaneLoader(Digits(), method.recipe, schedule).stream(0, STEPS):
        losses.append(step(batch).result().loss)
        if batch.step % 10 == 9:
            complaints.append(watch.complaint(measure(step.features(batch, samples=BATCH))))
    assert mean(losses[-10:]) < 0.95 * mean(losses[2:12])  # MoCo's queue begins with noise, which is easily told apart
    assert set(complaints) == {None}
