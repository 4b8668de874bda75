"""How much of a training step is the model itself?

    python benchmarks/step.py [model=resnet18_32 …] [--recipes simclr_cifar10 …] [--precision bf16] [--lanes 2]

Takes recipes (configs/experiment) with what is said of them, and with their batch but for --batch. In turns in one
process: our whole step (from uint8 views in memory to changed weights: lane BatchNorm, loss, finite flag, queue,
momentum networks, optimiser), and the bare model: the same networks with native BatchNorm, the same forward and
backward passes, the mean of the outputs as loss, the same optimiser, images that lie ready as tensors. On a GPU where
there is one, with the views' colours given there, as a run does; then the host may run a step ahead, as in the loop.
bf16 where the machine has instructions for it, else fp32, if --precision does not say. Prints medians over rounds of
some steps each and bare / ours: 1 is a step without overhead.
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
from ssl_core.train.step import PendingStep, StepConfig, TrainStep
from ssl_core.types import LaneBatch, ViewBatch
from ssl_core.views.batched_colors import BatchedColors
from ssl_core.views.recipes import CropConfig, CropRecipe

RECIPES = ["simclr_cifar10", "moco_v2_cifar10", "moco_v3_cifar10", "mae_cifar10"]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS = 10 if DEVICE.type == "cuda" else 1  # a round

Step = Callable[[int], Any]


def method_of(values: dict[str, Any]) -> Method:
    """The recipe's method."""
    name = values["method"]["name"]
    config = typed(METHODS[name].config, {key: v for key, v in values["method"].items() if key != "name"}, "method.")
    model = {key: value for key, value in values["model"].items() if key not in ("mean", "std")}
    size = values["views"]["image_size"] or model["image_size"]
    views = typed(CropConfig, {**METHODS[name].view_values(config, values["views"]), "image_size": size}, "views.")
    encoder = build_encoder(ModelConfig(**model))
    return build_method(name, config, encoder=encoder, recipe=CropRecipe.of(views), seed=0)


def our_step(values: dict[str, Any], lanes: Lanes, precision: Any, compile_it: bool) -> Step:
    """A whole step, from pixels."""
    method = method_of(values)
    assert isinstance(method.recipe, CropRecipe)
    use_lane_batch_norm(as_module(method))
    step = TrainStep(
        method,
        StepConfig(total_steps=10**6, precision=precision, compile=compile_it, mean=(0.5,) * 3, std=(0.25,) * 3),
        optim=typed(OptimConfig, values["optim"], "optim."),
        lanes=lanes,
        collectives=Collectives(),
        device=DEVICE,
        colors=BatchedColors(method.recipe.layout, seed=0) if DEVICE.type == "cuda" else None,
    )
    group = method.recipe.groups[0]
    shape = (lanes.count, group.count, lanes.size, group.height, group.width, group.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    positions = np.arange(lanes.global_batch).reshape(lanes.count, -1)

    def take(number: int) -> PendingStep:
        return step(LaneBatch(step=number, epoch=0, positions=positions, draws=positions, groups={"views": pixels}))

    return take


def bare_step(values: dict[str, Any], lanes: Lanes, precision: str, compile_it: bool) -> Step:
    """The same networks without anything around them."""
    method = method_of(values)
    module = as_module(method).to(DEVICE, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (stubs)
    optimizer = build_optimizer(typed(OptimConfig, values["optim"], "optim."), method.parameters())
    group = method.recipe.groups[0]
    shape = (lanes.global_batch * group.count, group.channels, group.height, group.width)
    images = torch.randn(shape, device=DEVICE)
    batch = ViewBatch(
        images={"views": images.contiguous(memory_format=torch.channels_last)},
        draws=torch.arange(lanes.global_batch, device=DEVICE),
        num_lanes=1,
        step=0,
        epoch=0,
    )
    embed = torch.compile(method.embed, dynamic=False) if compile_it else method.embed
    low = torch.autocast(DEVICE.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    module.train()

    def take(number: int) -> None:
        optimizer.zero_grad()
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):  # as ours
            with low:
                rows = embed(batch)
            torch.stack([row.float().mean() for row in rows.values() if row.requires_grad]).sum().backward()
        optimizer.step()

    return take


def milliseconds(take: Step, first: int) -> float:
    """Of a step, over a round; a result is read once the next step is under way."""
    start, before = perf_counter(), None
    for number in range(first, first + STEPS):
        now = take(number)
        if before is not None:
            before.result()
        before = now
    if before is not None:
        before.result()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (perf_counter() - start) / STEPS


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="keys of pretrain: model=resnet18_32")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--precision", default="bf16" if bf16_is_fast() else "fp32")
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    for name in arguments.recipes:
        values = compose("pretrain", [f"experiment={name}", *arguments.words])
        lanes = Lanes.cut(arguments.batch or values["train"]["global_batch"], arguments.lanes)
        takes = [make(values, lanes, arguments.precision, arguments.compile) for make in (our_step, bare_step)]
        found: list[list[float]] = [[], []]
        for number in range(arguments.rounds + 2):
            for take, times in zip(takes, found, strict=True):
                times.append(milliseconds(take, number * STEPS))
        ours, bare = (median(times[2:]) for times in found)
        ratio = median(b / o for o, b in zip(found[0][2:], found[1][2:], strict=True))
        print(
            f"{name}, {arguments.precision}, batch {lanes.global_batch} in {lanes.count} lanes: ours {ours:.1f} ms, "
            f"bare {bare:.1f} ms, bare / ours {ratio:.3f}, {1000 * lanes.global_batch / ours:.0f} images/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
