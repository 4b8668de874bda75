"""What does regrouping MoCo's keys across workers cost? (docs/decisions/0004-keys-cross-workers.md)

    python benchmarks/shuffled_keys.py [--workers 2] [--size 32] [--batch 256] [--steps 12]

A MoCo v2 step of `resnet_micro` with gloo between processes on this machine, one thread each, with `shuffle=true` and
`false` in turn, and the exchange of the pixels by itself. Prints medians over steps, on rank 0.
"""

import argparse
import multiprocessing
import socket
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np
import torch

from ssl_core.collectives import Collectives, leave_group, start_gloo
from ssl_core.lanes import Lanes
from ssl_core.methods import build_method
from ssl_core.methods.base import as_module
from ssl_core.methods.moco import MoCoConfig
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.nn.lane_batch_norm import use_lane_batch_norm
from ssl_core.optim import OptimConfig
from ssl_core.train.step import StepConfig, TrainStep
from ssl_core.types import LaneBatch
from ssl_core.views.recipes import recipe

MICRO = {"layers": [1, 1, 1, 1], "channels": [32, 64, 128, 256]}


def make_step(collectives: Collectives, lanes: Lanes, *, size: int, steps: int, shuffle: bool) -> TrainStep:
    """One worker's step."""
    encoder = build_encoder(ModelConfig(name="resnet18", image_size=size, stem="cifar", arguments=MICRO))
    config = MoCoConfig(queue=4096, momentum=0.99, projector=(256, 128), shuffle=shuffle)
    method = build_method("moco", config, encoder=encoder, recipe=recipe("moco_v2", image_size=size), seed=0)
    use_lane_batch_norm(as_module(method))
    return TrainStep(
        method,
        StepConfig(total_steps=2 * steps),
        optim=OptimConfig(name="sgd", base_rate=0.03),
        lanes=lanes,
        collectives=collectives,
        device=torch.device("cpu"),
    )


def work(rank: int, arguments: argparse.Namespace, address: str) -> None:
    """What one worker does."""
    torch.set_num_threads(1)
    world: int = arguments.workers
    collectives = start_gloo(rank, world, address) if world > 1 else Collectives()
    lanes = Lanes.cut(arguments.batch, 8, rank=rank, world=world)
    size = arguments.size
    shape = (len(lanes.owned), 2, lanes.size, size, size, 3)
    views = np.random.default_rng(rank).integers(0, 256, shape, dtype=np.uint8)
    positions = np.arange(lanes.owned.start * lanes.size, lanes.owned.stop * lanes.size).reshape(-1, lanes.size)
    steps = {s: make_step(collectives, lanes, size=size, steps=arguments.steps, shuffle=s) for s in (True, False)}
    seconds: dict[str, list[float]] = {"shuffle": [], "no shuffle": [], "exchange": []}
    counts = [count * lanes.size for count in lanes.counts]
    pixels = torch.from_numpy(np.ascontiguousarray(views[:, 1])).flatten(0, 1)
    for number in range(arguments.steps + 2):
        batch = LaneBatch(step=number, epoch=0, positions=positions, draws=positions, groups={"views": views})
        order = torch.from_numpy(np.random.default_rng(number).permutation(arguments.batch))
        calls = {
            "shuffle": partial(steps[True], batch),
            "no shuffle": partial(steps[False], batch),
            "exchange": partial(collectives.exchange_rows, pixels, order, counts),
        }
        for name, call in calls.items():
            collectives.barrier()
            start = perf_counter()
            call()
            collectives.barrier()
            seconds[name].append(perf_counter() - start)
    if rank == 0:
        with_, without, alone = (1000 * median(seconds[name][2:]) for name in ("shuffle", "no shuffle", "exchange"))
        ratio = median(a / b for a, b in zip(seconds["shuffle"][2:], seconds["no shuffle"][2:], strict=True))
        print(
            f"W = {world}, batch {arguments.batch} at {size} px: step {without:.0f} ms without shuffle, {with_:.0f} ms "
            f"with (ratio {ratio:.3f}); the exchange of {pixels.nbytes * world / 1e6:.1f} MB alone {alone:.1f} ms "
            f"({100 * alone / without:.2f} %)"
        )
    leave_group()


def main() -> None:
    """Start the workers and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(rank, arguments, address)) for rank in range(arguments.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
