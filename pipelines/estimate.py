"""`plan=true`: what a run would take, from a few small steps that are really made."""

import time

import numpy as np
import torch

from pipelines.console import duration
from pipelines.plan import Plan, threads_per_worker
from ssl_core import rng
from ssl_core.collectives import Collectives
from ssl_core.lanes import Lanes
from ssl_core.methods.base import as_module
from ssl_core.nn.lane_batch_norm import use_lane_batch_norm
from ssl_core.train.step import TrainStep
from ssl_core.types import LaneBatch

_PROBE_SAMPLES = 16


def estimate(plan: Plan) -> str:
    """Memory of a worker and time of the run, scaled up from steps of at most 16 random samples on this machine."""
    method = plan.build_method(plan.random_encoder())
    use_lane_batch_norm(as_module(method))
    size = min(_PROBE_SAMPLES, plan.lanes.size)
    lanes = Lanes(count=1, size=size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    threads, threads_before = threads_per_worker(plan, plan.lanes.world), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        step = TrainStep(
            method,
            plan.step,
            optim=plan.config.optim,
            lanes=lanes,
            collectives=Collectives(),
            device=device,
        )
        batch = _random_batch(plan, size)
        step(batch)
        saved = _saved_bytes(step, batch)
        began = time.perf_counter()
        step(batch)
        seconds = time.perf_counter() - began
    finally:
        torch.set_num_threads(threads_before)
    held = sum(p.numel() * p.element_size() for p in step.module.parameters())
    micro = plan.config.train.micro_batch or max(plan.lanes.counts) * plan.lanes.size
    passes = 1.0 if plan.config.train.micro_batch is None else 4 / 3  # gradient caching embeds once more, without graph
    a_step = seconds * max(plan.lanes.counts) * plan.lanes.size / size * passes
    memory = 4 * held + saved / size * micro
    return (
        f"memory of a worker: about {memory / 2**30:.1f} GiB ({4 * held / 2**20:.0f} MiB weights, gradients and "
        f"optimiser; activations of {micro} samples)\n"
        f"time on machines like this one ({device.type}, {threads} thread(s) a worker): about "
        f"{duration(a_step)} a step, {duration(a_step * plan.total_steps)} for the run, if loading keeps up\n"
        "nothing was started"
    )


def _random_batch(plan: Plan, size: int) -> LaneBatch:
    groups = {
        group.name: np.full((1, group.count, size, group.height, group.width, group.channels), 128, dtype=np.uint8)
        for group in plan.build_method(plan.random_encoder()).recipe.groups
    }
    for number, pixels in enumerate(groups.values()):
        noise = rng.random_bits(rng.key(0, "estimate", np.arange(pixels.shape[1] * size), number), pixels[0, 0, 0].size)
        pixels[:] = (noise & 0xFF).reshape(pixels.shape)
    positions = np.arange(size)[None]
    return LaneBatch(step=0, epoch=0, positions=positions, draws=positions, groups=groups)


def _saved_bytes(step: TrainStep, batch: LaneBatch) -> int:
    """Bytes that autograd keeps between forward and backward."""
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step(batch)
    return sum(seen.values())
