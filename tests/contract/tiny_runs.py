"""A run of each method that is small enough for many tests: its own YAML, but for an encoder of a few thousand weights.

A method joins the contract by being in `METHODS`; what suits it better here (another encoder, narrower heads) goes
into `OVERRIDES`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from pipelines.config import compose, typed
from ssl_core import rng
from ssl_core.collectives import Collectives
from ssl_core.data.loader import LaneLoader, Schedule
from ssl_core.lanes import Lanes
from ssl_core.methods import METHODS, build_method
from ssl_core.methods.base import as_module
from ssl_core.nn.backbones import ModelConfig, build_encoder, checkpoint_activations
from ssl_core.nn.lane_batch_norm import lane_batch_norms, use_lane_batch_norm
from ssl_core.optim import OptimConfig
from ssl_core.train.step import Precision, StepConfig, TrainStep
from ssl_core.views.batched_colors import BatchedColors
from ssl_core.views.recipes import CropConfig, CropRecipe

IMAGE_SIZE = 16
SHARD_SAMPLES = np.asarray([13, 0, 30, 21])
NUM_LANES, GLOBAL_BATCH = 8, 16
STEPS_PER_EPOCH = int(SHARD_SAMPLES.sum()) // GLOBAL_BATCH
TOTAL_STEPS = 6
SEED = 11
RESNET = ModelConfig(
    name="resnet18", image_size=IMAGE_SIZE, stem="cifar", arguments={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
)


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """What differs from the method's YAML: keys of the command line, the encoder, and the epsilon of BatchNorm."""

    overrides: tuple[str, ...] = ()
    model: ModelConfig = RESNET
    norm_eps: float = 1e-5


VIT = ModelConfig(
    name="vit_tiny_patch16_224",
    image_size=IMAGE_SIZE,
    arguments={"patch_size": 4, "depth": 2, "num_heads": 2, "embed_dim": 16, "global_pool": "avg"},
)
OVERRIDES: dict[str, Tiny] = {
    "simclr": Tiny(overrides=("method.projector=[16,8]",)),
    "moco": Tiny(overrides=("method.projector=[16,8]", "method.queue=37", "method.momentum=0.9")),
    # SGD: BatchNorm over a lane of two gives ±1 whatever it sees; Adam would turn that gradient's rounding into steps.
    # Where the two are nearly alike the usual epsilon multiplies rounding a million times.
    "moco_v3": Tiny(
        overrides=("method.projector=[16,16,8]", "method.predictor=[16,8]", "optim.name=sgd"), model=VIT, norm_eps=0.1
    ),
    "mae": Tiny(overrides=("method.decoder_width=16", "method.decoder_depth=1", "method.decoder_heads=2"), model=VIT),
}


@dataclass(frozen=True, kw_only=True)
class TinyRun:
    """Plain values that any process can build the run from."""

    name: str
    model: ModelConfig
    method: Any
    views: CropConfig
    optim: OptimConfig
    norm_eps: float


@cache
def tiny_run(name: str) -> TinyRun:
    """The run of a method."""
    tiny = OVERRIDES.get(name, Tiny())
    values = compose("pretrain", [f"method={name}", *tiny.overrides])
    numbers = {key: value for key, value in values["method"].items() if key != "name"}
    method = typed(METHODS[name].config, numbers, "method.")
    views = {**METHODS[name].view_values(method, values["views"]), "image_size": IMAGE_SIZE}
    return TinyRun(
        name=name,
        model=tiny.model,
        method=method,
        views=typed(CropConfig, views, "views."),
        optim=typed(OptimConfig, {**values["optim"], "base_rate": 4.0}, "optim."),
        norm_eps=tiny.norm_eps,
    )


class KeyedImages:
    """Noise, as a function of the position."""

    def image(self, position: int) -> np.ndarray[Any, Any]:
        numbers = rng.random_bits(rng.key(0, "test.image", position), 20 * 18 * 3)
        return (numbers & 255).astype(np.uint8).reshape(20, 18, 3)


def build(
    run: TinyRun,
    collectives: Collectives,
    *,
    precision: Precision = "fp64",
    micro_batch: int | None = None,
    total_steps: int = TOTAL_STEPS,
    global_batch: int = GLOBAL_BATCH,
    global_batch_norm: bool = False,
    checkpointed: bool = False,
    colors_on_device: bool = False,
    device: str = "cpu",
) -> tuple[TrainStep, LaneLoader]:
    """The step and the batches of one worker."""
    lanes = Lanes.cut(global_batch, NUM_LANES, rank=collectives.rank, world=collectives.world)
    encoder = build_encoder(run.model, seed=SEED)
    if checkpointed:
        checkpoint_activations(encoder)
    method = build_method(run.name, run.method, encoder=encoder, recipe=CropRecipe.of(run.views), seed=SEED)
    use_lane_batch_norm(as_module(method), everyone=collectives if global_batch_norm else None)
    for norm in lane_batch_norms(as_module(method)):
        norm.eps = run.norm_eps
    config = StepConfig(
        total_steps=total_steps,
        seed=SEED,
        precision=precision,
        micro_batch=micro_batch,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.25),
    )
    recipe, colors = CropRecipe.of(run.views), None
    if colors_on_device:
        recipe, colors = recipe.crops_only(), BatchedColors(recipe.layout, seed=SEED)
    step = TrainStep(
        method,
        config,
        optim=run.optim,
        lanes=lanes,
        collectives=collectives,
        device=torch.device(device),
        colors=colors,
    )
    shards = SHARD_SAMPLES * (global_batch // GLOBAL_BATCH)
    schedule = Schedule(shard_samples=shards, seed=SEED, block=20, lanes=lanes)
    return step, LaneLoader(KeyedImages(), recipe, schedule)
