"""How much of a training step is the model itself?

    python benchmarks/step.py [--methods simclr moco moco_v3 mae] [--precision bf16] [--lanes 2] [--batch 256]

Takes each method's CIFAR-10 recipe, its lanes and, without --batch, its batch. In turns in one process: our whole step
(from uint8 views in memory to changed weights: lane BatchNorm, loss, finite flag, queue, momentum networks, optimiser),
and the bare model: the same networks with native BatchNorm, the same forward and backward passes, the mean of the
outputs as loss, the same optimiser, images that lie ready as tensors. bf16 where the machine has instructions for it,
else fp32, if --precision does not say. Prints medians and bare / ours: 1 is a step
without overhead.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from pipelines.config import compose, typed
from pipelines.pretrain import bf16_is_fast
from pipelines.worker import keep_freed_memory
from ssl_core.collectives import Collectives
from ssl_core.lanes import Lanes
from ssl_core.methods import METHODS, build_method
from ssl_core.methods.base import Method, as_module
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.nn.lane_batch_norm import use_lane_batch_norm
from ssl_core.optim import OptimConfig, build_optimizer
from ssl_core.train.step import StepConfig, TrainStep
from ssl_core.types import LaneBatch, ViewBatch
from ssl_core.views.recipes import CropConfig, CropRecipe

RECIPES = {
    "simclr": "simclr_cifar10",
    "moco": "moco_v2_cifar10",
    "moco_v3": "moco_v3_cifar10",
    "mae": "mae_cifar10",
}


def method_of(values: dict[str, Any]) -> Method:
    """The recipe's method."""
    name = values["method"]["name"]
    config = typed(METHODS[name].config, {key: v for key, v in values["method"].items() if key != "name"}, "method.")
    model = {key: value for key, value in values["model"].items() if key not in ("mean", "std")}
    size = values["views"]["image_size"] or model["image_size"]
    views = typed(CropConfig, {**METHODS[name].view_values(config, values["views"]), "image_size": size}, "views.")
    encoder = build_encoder(ModelConfig(**model))
    return build_method(name, config, encoder=encoder, recipe=CropRecipe.of(views), seed=0)


def our_step(values: dict[str, Any], lanes: Lanes, precision: Any, compile_it: bool) -> Callable[[int], None]:
    """A whole step, from pixels."""
    method = method_of(values)
    use_lane_batch_norm(as_module(method))
    step = TrainStep(
        method,
        StepConfig(total_steps=10**6, precision=precision, compile=compile_it, mean=(0.5,) * 3, std=(0.25,) * 3),
        optim=typed(OptimConfig, values["optim"], "optim."),
        lanes=lanes,
        collectives=Collectives(),
        device=torch.device("cpu"),
    )
    group = method.recipe.groups[0]
    shape = (lanes.count, group.count, lanes.size, group.height, group.width, group.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    positions = np.arange(lanes.global_batch).reshape(lanes.count, -1)

    def take(number: int) -> None:
        step(LaneBatch(step=number, epoch=0, positions=positions, draws=positions, groups={"views": pixels})).result()

    return take


def bare_step(values: dict[str, Any], lanes: Lanes, precision: str, compile_it: bool) -> Callable[[int], None]:
    """The same networks without anything around them."""
    method = method_of(values)
    module = as_module(method).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (stubs)
    optimizer = build_optimizer(typed(OptimConfig, values["optim"], "optim."), method.parameters())
    group = method.recipe.groups[0]
    images = torch.randn(lanes.global_batch * group.count, group.channels, group.height, group.width)
    batch = ViewBatch(
        images={"views": images.contiguous(memory_format=torch.channels_last)},
        draws=torch.arange(lanes.global_batch),
        num_lanes=1,
        step=0,
        epoch=0,
    )
    embed = torch.compile(method.embed, dynamic=False) if compile_it else method.embed
    low = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
    module.train()

    def take(number: int) -> None:
        optimizer.zero_grad()
        with low:
            rows = embed(batch)
        torch.stack([row.float().mean() for row in rows.values() if row.requires_grad]).sum().backward()
        optimizer.step()

    return take


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(RECIPES))
    parser.add_argument("--precision", default="bf16" if bf16_is_fast() else "fp32")
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    for name in arguments.methods:
        values = compose("pretrain", [f"experiment={RECIPES[name]}"])
        lanes = Lanes.cut(arguments.batch or values["train"]["global_batch"], arguments.lanes)
        takes = [make(values, lanes, arguments.precision, arguments.compile) for make in (our_step, bare_step)]
        seconds: list[list[float]] = [[], []]
        for number in range(arguments.rounds + 2):
            for take, times in zip(takes, seconds, strict=True):
                start = perf_counter()
                take(number)
                times.append(perf_counter() - start)
        ours, bare = (1000 * median(times[2:]) for times in seconds)
        ratio = median(b / o for o, b in zip(seconds[0][2:], seconds[1][2:], strict=True))
        print(
            f"{name}, {arguments.precision}, batch {lanes.global_batch} in {lanes.count} lanes: ours {ours:.0f} ms, "
            f"bare {bare:.0f} ms, bare / ours {ratio:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
