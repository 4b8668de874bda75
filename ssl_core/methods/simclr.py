"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., arXiv 2002.05709).

Algorithm 1: two views of every sample pass encoder f and projector g; NT-Xent (eq. 1) draws the two together and
pushes all other 2N − 2 rows of the global batch away. The representation is f's output; g is thrown away.

Departures: BatchNorm normalises by lane, which with the default lanes is what the paper's devices would do without its
global BatchNorm; the projector has no BatchNorm after its last layer, as in the paper's text (its TPU code has one).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_core.data.lane_views import Recipe
from ssl_core.losses import nt_xent_partial
from ssl_core.methods.base import StepInfo, refuse_temperature
from ssl_core.nn.backbones import Encoder
from ssl_core.nn.heads import mlp_head
from ssl_core.types import GlobalRows, ViewBatch


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig:
    """SimCLR's own numbers; the defaults are the paper's for ImageNet (section 4.2, appendix B.6)."""

    temperature: float = 0.1
    projector: tuple[int, ...] = (2048, 128)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        refuse_temperature(self.temperature)


class SimCLR(nn.Module):
    """Encoder, projector and NT-Xent; one view group of two views."""

    per_sample = False
    shuffled_view: int | None = None

    def __init__(self, config: SimCLRConfig, *, encoder: Encoder, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = mlp_head([encoder.num_features, *config.projector])
        self.recipe = recipe
        self.temperature = config.temperature

    def embed(self, batch: ViewBatch) -> Mapping[str, Tensor]:
        """Both views in one call, so that a lane's two views share BatchNorm statistics: {"z": [L · 2 · b, D]}."""
        return {"z": self.projector(self.encoder(batch.images["views"]))}

    def loss(self, rows: GlobalRows) -> Tensor:
        """NT-Xent of own rows against all, as this worker's part of the mean over all rows."""
        z_MD = rows.rows["z"]
        positive_M = other_view(len(z_MD), rows.per_lane("z") // 2, device=z_MD.device)
        return nt_xent_partial(z_MD, positive_M, own=rows.own("z"), temperature=self.temperature) / len(z_MD)

    def before_step(self, info: StepInfo) -> None:
        """SimCLR has no state of its own."""

    def after_step(self, rows: GlobalRows, keep: Tensor) -> None:
        """SimCLR has no state of its own."""


def other_view(num_rows: int, lane_size: int, *, device: torch.device | None = None) -> Tensor:
    """For rows that lie (lane, view of two, sample): the row of each row's other view, int64 [num_rows]."""
    index = torch.arange(num_rows, device=device)
    first = index % (2 * lane_size) < lane_size
    return torch.where(first, index + lane_size, index - lane_size)
