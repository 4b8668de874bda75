"""The one narrow door between the worker loop and its surroundings.

Everything the loop needs to know of the platform is here, so that the same loop runs in one process without Ray or
MLflow (`InProcessContext`), which is how it is tested and profiled, and as a Ray Train worker
(`pipelines.ray_context`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch

from ssl_core.collectives import Collectives
from ssl_core.storage.s3 import Folder
from ssl_core.train.saved_steps import CHECKPOINTS

STOP_FILE = "stop-requested"

Doing = Literal["starting", "stepping", "probing", "saving"]
"""What a worker is at. Only steps are expected to take as long as one another."""


class RunContext(Protocol):
    """What a worker may ask of the platform."""

    @property
    def collectives(self) -> Collectives:
        """Rank, world size and the operations between workers."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this worker computes."""
        ...

    @property
    def folder(self) -> Path:
        """The run's folder, on storage that all workers share."""
        ...

    @property
    def attempt(self) -> int:
        """Which attempt of the run this is, from 1; names the parts of append-only records."""
        ...

    @property
    def checkpoints(self) -> Folder:
        """Where checkpoints are, which all workers reach."""
        ...

    def should_stop(self) -> bool:
        """Whether this worker was asked to stop at the next step boundary; asked every step, so it must be cheap."""
        ...

    def at(self, step: int, doing: Doing) -> None:
        """Be told what this worker begins, so that a hang is seen; told every step, so it must be cheap."""
        ...


@dataclass(frozen=True, kw_only=True)
class InProcessContext:
    """A worker in this very process; with a process group already formed, one of several."""

    folder: Path
    attempt: int = 1
    collectives: Collectives = field(default_factory=Collectives)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    bucket: Folder | None = None  # where checkpoints are; None: in the run's folder

    @property
    def checkpoints(self) -> Folder:
        """In the run's folder, unless `bucket` says where."""
        return self.bucket or self.folder / CHECKPOINTS

    def should_stop(self) -> bool:
        """Whether somebody put the stop file into the run's folder."""
        return (self.folder / STOP_FILE).exists()

    def at(self, step: int, doing: Doing) -> None:
        """Nobody watches."""
