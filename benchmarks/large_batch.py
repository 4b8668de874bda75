"""How much memory does a large batch take, and how long a step?

    python benchmarks/large_batch.py [--model resnet_micro] [--batch 4096] [--micro 256] [--steps 2] [--precision bf16]
    python benchmarks/large_batch.py --model resnet50 --batch 1024 --micro 32 --steps 1

Whole SimCLR steps with gradient caching, from uint8 views in memory to changed weights. Prints the peak of the
process's resident memory, what it was before the first step (libraries, weights, pixels), and the last step's time.
"""

import argparse
import resource
from time import perf_counter

import numpy as np
import torch

from pipelines.config import compose
from pipelines.pretrain import bf16_is_fast
from ssl_core.collectives import Collectives
from ssl_core.lanes import Lanes
from ssl_core.methods import build_method
from ssl_core.methods.base import as_module
from ssl_core.methods.simclr import SimCLRConfig
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.nn.lane_batch_norm import use_lane_batch_norm
from ssl_core.optim import OptimConfig
from ssl_core.train.step import StepConfig, TrainStep
from ssl_core.types import LaneBatch
from ssl_core.views.recipes import recipe


def peak_gib() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet_micro")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--micro", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16" if bf16_is_fast() else "fp32")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = compose("pretrain", [f"model={arguments.model}"])["model"]
    size: int = model["image_size"]
    lanes = Lanes.cut(arguments.batch, arguments.batch // min(arguments.micro, 64))
    encoder = build_encoder(ModelConfig(**{key: value for key, value in model.items() if key not in ("mean", "std")}))
    method = build_method("simclr", SimCLRConfig(), encoder=encoder, recipe=recipe("simclr", image_size=size), seed=0)
    use_lane_batch_norm(as_module(method))
    step = TrainStep(
        method,
        StepConfig(total_steps=arguments.steps, precision=arguments.precision, micro_batch=arguments.micro),
        optim=OptimConfig(),
        lanes=lanes,
        collectives=Collectives(),
        device=torch.device("cpu"),
    )
    shape = (lanes.count, 2, lanes.size, size, size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    positions = np.arange(lanes.global_batch).reshape(lanes.count, -1)
    before, seconds = peak_gib(), 0.0
    for number in range(arguments.steps):
        start = perf_counter()
        step(LaneBatch(step=number, epoch=0, positions=positions, draws=positions, groups={"views": pixels})).result()
        seconds = perf_counter() - start
    print(
        f"SimCLR, {arguments.model}, batch {arguments.batch:,} at {size} px in micro-batches of {arguments.micro}, "
        f"{arguments.precision}: peak {peak_gib():.2f} GiB ({before:.2f} before the first step), {seconds:.0f} s a step"
    )


if __name__ == "__main__":
    main()
