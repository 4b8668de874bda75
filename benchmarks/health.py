"""What does looking at the features cost, as a share of training? (docs/methods.md, target: 1 %)

    python benchmarks/health.py [--model resnet_micro] [--size 32] [--batch 256] [--every 50] [--rounds 8]

A SimCLR step and a look (`TrainStep.features` on 128 images and `measure`) take turns in one process; prints
medians and the share that a look every so many steps takes.
"""

import argparse
from dataclasses import replace
from statistics import median
from time import perf_counter

import numpy as np
import torch
from mask_ratio import model_config

from ssl_core.collectives import Collectives
from ssl_core.lanes import Lanes
from ssl_core.methods import build_method
from ssl_core.methods.base import as_module
from ssl_core.methods.simclr import SimCLRConfig
from ssl_core.nn.backbones import build_encoder
from ssl_core.nn.lane_batch_norm import use_lane_batch_norm
from ssl_core.optim import OptimConfig
from ssl_core.train.health import measure
from ssl_core.train.step import StepConfig, TrainStep
from ssl_core.types import LaneBatch
from ssl_core.views.recipes import recipe


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet_micro")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    size = arguments.size
    lanes = Lanes.cut(arguments.batch, 2, rank=0, world=1)
    encoder = build_encoder(replace(model_config(arguments.model), image_size=size))
    views = recipe("simclr", image_size=size)
    method = build_method("simclr", SimCLRConfig(projector=(256, 128)), encoder=encoder, recipe=views, seed=0)
    use_lane_batch_norm(as_module(method))
    step = TrainStep(
        method,
        StepConfig(total_steps=1000),
        optim=OptimConfig(name="sgd", base_rate=0.01),
        lanes=lanes,
        collectives=Collectives(),
        device=torch.device("cpu"),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, lanes.size, size, size, 3), dtype=np.uint8)
    positions = np.arange(arguments.batch).reshape(2, -1)
    steps: list[float] = []
    looks: list[float] = []
    for number in range(arguments.rounds + 2):
        batch = LaneBatch(step=number, epoch=0, positions=positions, draws=positions, groups={"views": pixels})
        start = perf_counter()
        step(batch).result()
        middle = perf_counter()
        measure(step.features(batch, samples=128))
        looks.append(perf_counter() - middle)
        steps.append(middle - start)
    step_ms, look_ms = (1000 * median(values[2:]) for values in (steps, looks))
    share = median(look / (arguments.every * one) for look, one in zip(looks[2:], steps[2:], strict=True))
    print(
        f"{arguments.model} at {size} px, batch {arguments.batch}: step {step_ms:.0f} ms, look {look_ms:.0f} ms: "
        f"{100 * share:.2f} % of training with a look every {arguments.every} steps"
    )


if __name__ == "__main__":
    main()
