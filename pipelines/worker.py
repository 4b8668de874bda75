"""What every worker of an attempt runs: build the data, the method and the loop from the plan. No logic of its own.

`run_worker` knows no Ray, so that the same attempt can be run and profiled in one process.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import torch

from pipelines.plan import (
    Plan,
    make_plan,
    probe_sets,
    save_config,
    steps_to_prepare,
    threads_per_worker,
)
from pipelines.run_folder import EXPORT, INIT, checkpoint_folder
from ssl_core.data.loader import LaneLoader
from ssl_core.data.reader import Reader
from ssl_core.export import WEIGHTS, load_weights, save_encoder
from ssl_core.methods.base import as_module
from ssl_core.nn.lane_batch_norm import use_lane_batch_norm
from ssl_core.probe.features import ImageInput
from ssl_core.probe.online import OnlineKNN
from ssl_core.train.context import RunContext
from ssl_core.train.loop import LoopConfig, LoopResult, train, writable
from ssl_core.train.step import TrainStep, why_not_compiled

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt, as plain values that any worker can read."""

    config: dict[str, Any]
    folder: str
    attempt: int


Body = Callable[[Job, RunContext], LoopResult]
"""What a worker does within an attempt."""


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
    torch.set_num_threads(threads_per_worker(plan))
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
    step = TrainStep(
        method,
        step_config,
        optim=plan.config.optim,
        lanes=plan.lanes,
        collectives=context.collectives,
        device=context.device,
    )
    data = plan.config.data
    reader = Reader(plan.train_data, channels=plan.config.model.in_chans, max_bad=data.max_bad, cache=data.shard_cache)
    loader = LaneLoader(
        reader,
        method.recipe,
        plan.schedule,
        threads=data.threads,
        processes=data.processes,
        prepare=reader.prepare if plan.train_data.bucket_shards else None,
        prepare_ahead=steps_to_prepare(plan),
    )
    monitor = online_knn(plan, context)
    result = train(step, loader, reader.quarantine, loop_config(plan), context, monitor=monitor, complaints=complaints)
    if result.finished and context.collectives.rank == 0:
        with writable(context.folder):
            save_encoder(Path(job.folder) / EXPORT, method.encoder, plan.export)
    return result


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


def ray_worker(job: dict[str, Any]) -> dict[str, Any]:
    """`run_worker` as Ray Train's `train_loop_per_worker`; what it returns is the attempt's result.

    Args:
        job: the fields of `Job`, `board`, the actor that beats are posted to, and `body`, which is `run_worker` but in
            tests of what surrounds it.
    """
    from pipelines.failures import last_words
    from pipelines.heartbeat import say_last_words
    from pipelines.ray_context import RayContext

    keep_freed_memory()
    board, body = job.pop("board"), job.pop("body")
    work = Job(**job)
    folder = Path(work.folder)
    checkpoints = checkpoint_folder(work.config["checkpoints"], folder)
    context = RayContext.of_this_worker(folder, work.attempt, checkpoints, board)
    context.heart.start()
    try:
        return vars(body(work, context))
    except Exception as error:  # noqa: BLE001 (it is raised again, in words)
        words = last_words(error, attempt=work.attempt, rank=context.collectives.rank)
        say_last_words(board, words)
        raise RuntimeError(words.said) from None  # plain text: Ray may not be able to carry the exception itself
    finally:
        context.heart.close()
