"""What every worker of an attempt runs: build the data, the method and the loop from the plan. No logic of its own.

`run_worker` knows no Ray, so that the same attempt can be run and profiled in one process.
"""

import ctypes
import socket
from dataclasses import replace
from pathlib import Path

import cv2
import torch

from pipelines.plan import (
    Plan,
    loader_processes,
    make_plan,
    probe_sets,
    save_config,
    steps_to_prepare,
    threads_per_worker,
)
from pipelines.run_folder import EXPORT, INIT
from pipelines.worker_process import Job
from ssl_core.collectives import Collectives
from ssl_core.data.loader import LaneLoader
from ssl_core.data.reader import Reader
from ssl_core.export import WEIGHTS, load_weights, save_encoder
from ssl_core.methods.base import as_module
from ssl_core.nn.lane_batch_norm import lane_batch_norms, use_lane_batch_norm, why_lane_by_lane
from ssl_core.probe.features import ImageInput
from ssl_core.probe.online import OnlineKNN
from ssl_core.train.context import RunContext
from ssl_core.train.loop import LoopConfig, LoopResult, train, writable
from ssl_core.train.step import TrainStep, why_not_compiled
from ssl_core.views import CropRecipe
from ssl_core.views.batched_colors import BatchedColors

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next step (elsewhere: do nothing).

    Activations are large; by default each is mapped from the kernel and given back, and the next step pays for every
    page again. Measured on 2 cores, `resnet_micro` at 24 px in fp32: 125 → 165 images/s.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28)):
            libc.mallopt(parameter, value)


def run_worker(job: Job, context: RunContext) -> LoopResult:
    """Train this worker's lanes from the newest checkpoint on; rank 0 exports the encoder of a finished run."""
    plan = make_plan(job.config, rank=context.collectives.rank, workers=context.collectives.world)
    cores = threads_per_worker(plan, workers_here(context.collectives))
    torch.set_num_threads(cores)
    cv2.setNumThreads(1)  # the loader's threads are its parallelism; OpenCV's own pool would fight the step for cores
    encoder = plan.random_encoder()
    start = Path(job.folder) / INIT / WEIGHTS
    if start.exists():
        from safetensors.torch import load_file

        load_weights(encoder, load_file(start), where=str(start))
    method = plan.build_method(encoder)
    everyone = context.collectives if plan.config.train.bn == "global" else None
    use_lane_batch_norm(as_module(method), everyone=everyone)
    complaints: list[str] = []
    step_config = plan.step
    if step_config.compile and (reason := why_not_compiled(context.device, context.collectives)):
        complaints = [f"warning: train.compile=true does not work here, so the run is not compiled: {reason}"]
        step_config = replace(step_config, compile=False)
    norms = lane_batch_norms(as_module(method))
    by_lanes = norms and everyone is None and context.device.type == "cuda" and not step_config.compile
    if by_lanes and (reason := why_lane_by_lane(context.collectives)):
        complaints.append(
            "warning: BatchNorm goes lane by lane, several times slower: to do better it needs the Triton that torch's "
            f"builds for GPUs bring, and a C compiler ({reason})"
        )
    data, recipe, colors = plan.config.data, method.recipe, None
    if data.colors == "device" or (data.colors is None and context.device.type != "cpu"):
        assert isinstance(recipe, CropRecipe), "no other recipe can leave out the colours"
        recipe, colors = recipe.crops_only(), BatchedColors(recipe.layout, seed=plan.config.seed)
    step = TrainStep(
        method,
        step_config,
        optim=plan.config.optim,
        lanes=plan.lanes,
        collectives=context.collectives,
        device=context.device,
        colors=colors,
    )
    reader = Reader(plan.train_data, channels=plan.config.model.in_chans, max_bad=data.max_bad, cache=data.shard_cache)
    loader = LaneLoader(
        reader,
        recipe,
        plan.schedule,
        threads=data.threads,
        processes=loader_processes(data, gpu=context.device.type != "cpu", cores=cores),
        prepare=reader.prepare if plan.train_data.bucket_shards else None,
        prepare_ahead=steps_to_prepare(plan),
    )
    monitor = online_knn(plan, context)
    result = train(step, loader, reader.quarantine, loop_config(plan), context, monitor=monitor, complaints=complaints)
    if result.finished and context.collectives.rank == 0:
        with writable(context.folder):
            save_encoder(Path(job.folder) / EXPORT, method.encoder, plan.export)
    return result


def workers_here(collectives: Collectives) -> int:
    """How many of the run's workers this worker's node has, itself among them."""
    here = socket.gethostname()
    return collectives.gather_objects(here).count(here)


def online_knn(plan: Plan, context: RunContext) -> OnlineKNN | None:
    """The k-NN curve, where labelled data is named."""
    probe, model = plan.config.probe, plan.config.model
    labelled = probe_sets(plan) if probe.every else None
    if labelled is None:
        return None
    return OnlineKNN(
        *labelled,
        max_train=probe.online_train,
        max_val=probe.online_val,
        seed=plan.config.seed,
        image_input=ImageInput(size=model.image_size, mean=plan.mean, std=plan.std),
        collectives=context.collectives,
        device=context.device,
        precision="bf16" if plan.config.train.precision == "bf16" else "fp32",
    )


def loop_config(plan: Plan) -> LoopConfig:
    """What the loop does besides stepping."""
    train_config = plan.config.train
    return LoopConfig(
        total_steps=plan.total_steps,
        steps_per_epoch=plan.schedule.steps_per_epoch,
        global_batch=plan.lanes.global_batch,
        save=save_config(train_config),
        max_skipped=train_config.max_skipped,
        log_every=train_config.log_every,
        health_every=train_config.health_every,
        monitor_every=plan.schedule.steps_per_epoch * plan.config.probe.every if plan.config.probe.every else None,
        audit=train_config.audit,
        profile=train_config.profile,
        identity=plan.identity,
    )
