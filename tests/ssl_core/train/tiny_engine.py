"""A run that costs milliseconds: a linear encoder with BatchNorm on 2 × 2 images, and an engine around it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssl_core import rng
from ssl_core.collectives import Collectives
from ssl_core.data.loader import LaneLoader, Schedule
from ssl_core.data.quarantine import Quarantine
from ssl_core.lanes import Lanes
from ssl_core.methods.base import StepInfo
from ssl_core.nn.backbones import Encoder
from ssl_core.nn.lane_batch_norm import LaneBatchNorm
from ssl_core.optim import OptimConfig
from ssl_core.storage.s3 import S3Location
from ssl_core.train.context import InProcessContext
from ssl_core.train.loop import LoopConfig, LoopResult, Monitor, train
from ssl_core.train.saver import SaveConfig
from ssl_core.train.step import StepConfig, TrainStep
from ssl_core.types import GlobalRows, ViewBatch

NUM_SAMPLES, GLOBAL_BATCH, TOTAL_STEPS = 27, 8, 7


class Linear(nn.Module):
    """Pulls its rows towards a target that follows them: a method with a state of its own."""

    recipe: Any = None
    per_sample = False
    shuffled_view: int | None = None
    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), LaneBatchNorm(3)), 3)
        self.register_buffer("centre", torch.zeros(3))
        self.steps_begun: list[int] = []

    def embed(self, batch: ViewBatch) -> Mapping[str, Tensor]:
        return {"z": self.encoder(batch.images["views"])}

    def loss(self, rows: GlobalRows) -> Tensor:
        z = rows.rows["z"]
        return ((z[rows.own("z")] - 1 - self.centre) ** 2).sum() / len(z)

    def before_step(self, info: StepInfo) -> None:
        self.steps_begun.append(info.step)

    def after_step(self, rows: GlobalRows, keep: Tensor) -> None:
        moved = self.centre.lerp(rows.rows["z"].mean(0).to(self.centre), 0.1)
        self.centre.copy_(torch.where(keep, moved, self.centre))


@dataclass(frozen=True, kw_only=True)
class Square:
    """Its one group of views."""

    name: str = "views"
    count: int = 1
    height: int = 2
    width: int = 2
    channels: int = 1


class Same:
    """The recipe that shows an image as it is."""

    groups = (Square(),)
    num_views = 1

    def draw(self, keys: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return keys

    def __call__(self, image: np.ndarray[Any, Any], numbers: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        return [image[None]]


class Noise:
    """Images as a function of the position; reading one at a position of `troubles` raises what is there."""

    def __init__(self, troubles: Mapping[int, Exception] | None = None) -> None:
        self.troubles = dict(troubles or {})

    def image(self, position: int) -> np.ndarray[Any, Any]:
        if position in self.troubles:
            raise self.troubles[position]
        return (rng.random_bits(rng.key(0, "test", position), 4) & 255).astype(np.uint8).reshape(2, 2, 1)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One worker's parts, with everything that the loop needs."""

    method: Linear
    step: TrainStep
    loader: LaneLoader
    schedule: Schedule
    quarantine: Quarantine
    folder: Path

    def train(
        self, *, attempt: int = 1, monitor: Monitor | None = None, bucket: S3Location | None = None, **config: Any
    ) -> LoopResult:
        """Run the loop in this process."""
        values: dict[str, Any] = {
            "total_steps": TOTAL_STEPS,
            "steps_per_epoch": self.schedule.steps_per_epoch,
            "global_batch": GLOBAL_BATCH,
            "save": SaveConfig(every_steps=2),
            "log_every": 1,
            "audit": True,
            **config,
        }
        context = InProcessContext(folder=self.folder, attempt=attempt, bucket=bucket)
        return train(self.step, self.loader, self.quarantine, LoopConfig(**values), context, monitor=monitor)


def make_engine(
    folder: Path,
    *,
    method: Linear | None = None,
    images: Noise | None = None,
    max_bad: int = 1,
    optim: OptimConfig | None = None,
    **config: Any,
) -> Engine:
    """A worker alone, at the start or where the folder is; `config` are fields of `StepConfig`."""
    lanes = Lanes.cut(GLOBAL_BATCH, 2)
    method = method or Linear()
    values: dict[str, Any] = {"total_steps": TOTAL_STEPS, **config}
    step = TrainStep(
        method,
        StepConfig(**values),
        optim=optim or OptimConfig(name="sgd", base_rate=3.0),
        lanes=lanes,
        collectives=Collectives(),
        device=torch.device("cpu"),
    )
    schedule = Schedule(shard_samples=np.asarray([NUM_SAMPLES]), seed=0, block=9, lanes=lanes)
    return Engine(
        method=method,
        step=step,
        loader=LaneLoader(images or Noise(), Same(), schedule),
        schedule=schedule,
        quarantine=Quarantine(NUM_SAMPLES, max_bad=max_bad),
        folder=folder,
    )
