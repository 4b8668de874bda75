"""Values that travel between the parts, with their shapes.

Legend: C lanes of the global batch, L lanes in this value, b samples a lane, V views of a group, H × W pixels, K
channels. Rows are always lane-major: (lane, view, sample).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LaneBatch:
    """What a loader makes for one step: the views of a worker's lanes, as pixels."""

    step: int
    epoch: int
    positions: np.ndarray  # int64 [L, b]: scheduled positions in manifest order
    draws: np.ndarray  # int64 [L, b]: what the samples' randomness is keyed by (`ssl_core.data.shares`)
    groups: Mapping[str, np.ndarray]  # a view group's name → uint8 [L, V, b, H, W, K]


@dataclass(frozen=True, kw_only=True)
class ViewBatch:
    """What a method embeds: whole lanes, as normalised images on the device."""

    images: Mapping[str, Tensor]  # a view group's name → float [L · V · b, K, H, W]
    draws: Tensor  # int64 [L · b]: the samples' positions, but for those that an epoch shows again
    num_lanes: int
    step: int
    epoch: int
    seed: int = 0
    shuffled_slots: Tensor | None = None  # int64 [L · b]: which samples of the global batch the shuffled view shows

    def view(self, group: str, number: int) -> Tensor:
        """One view of every sample: [L · b, K, H, W]."""
        images, views = self.images[group], self.views(group)
        rows = images.permute(0, 2, 3, 1).unflatten(0, (self.num_lanes, views, -1))  # as they lie in memory
        return rows[:, number].flatten(0, 1).permute(0, 3, 1, 2)

    def views(self, group: str) -> int:
        """V: views a sample has in this group."""
        return len(self.images[group]) // len(self.draws)


@dataclass(frozen=True, kw_only=True)
class GlobalRows:
    """The embeddings of the global batch in lane order, and which of them this worker made."""

    rows: Mapping[str, Tensor]  # name → [C · rows per lane, D]
    num_lanes: int
    own_lanes: range

    def per_lane(self, name: str) -> int:
        """Rows that one lane has under this name."""
        return len(self.rows[name]) // self.num_lanes

    def own(self, name: str) -> slice:
        """This worker's rows."""
        per_lane = self.per_lane(name)
        return slice(self.own_lanes.start * per_lane, self.own_lanes.stop * per_lane)


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step says: the loss of the global batch, the gradient's norm, and the workers' signals, summed."""

    loss: float
    gradient_norm: float
    signals: tuple[float, ...]

    @property
    def finite(self) -> bool:
        """Whether the step was committed: of one whose loss or gradient is not finite, nothing was."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)
