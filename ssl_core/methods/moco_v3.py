"""MoCo v3: An Empirical Study of Training Self-Supervised Vision Transformers (Chen et al., arXiv 2104.02057).

Algorithm 1: both views pass the query network, which ends in a predictor, and the momentum network; each view's query
is drawn to the other view's key and away from the keys of all other samples of the global batch. There is no queue. The
loss carries 2τ, and the momentum rises to 1 along a cosine. A Vision Transformer keeps its patch projection as it was
drawn (section 4.1) and has fixed 2-D sine-cosine positions.

Departures: BatchNorm in the heads normalises by lane; the projection is drawn as timm draws it, where the paper's code
uses a uniform distribution of the same scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_core.data.lane_views import Recipe
from ssl_core.errors import UserError
from ssl_core.losses import info_nce_partial
from ssl_core.methods.base import StepInfo, refuse_temperature
from ssl_core.nn.backbones import Encoder
from ssl_core.nn.ema import cosine_momentum, follow_, follower_of
from ssl_core.nn.heads import mlp_head
from ssl_core.nn.vision_transformer import fix_sincos_position_, freeze_patch_projection_, is_vision_transformer
from ssl_core.types import GlobalRows, ViewBatch


@dataclass(frozen=True, kw_only=True)
class MoCoV3Config:
    """MoCo v3's own numbers; the defaults are the paper's for ViT-B (section 5 and its code).

    Attributes:
        temperature: τ.
        projector: widths after the encoder's; BatchNorm after the last too, without weight and bias.
        predictor: widths after the projector's, likewise; the last must be the projector's last.
        momentum: of the momentum encoder at the first step.
        freeze_patch_projection: of a Vision Transformer.
    """

    temperature: float = 0.2
    projector: tuple[int, ...] = (4096, 4096, 256)
    predictor: tuple[int, ...] = (4096, 256)
    momentum: float = 0.99
    freeze_patch_projection: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        if self.projector[-1:] != self.predictor[-1:]:
            raise UserError(
                f"method.predictor={list(self.predictor)}: its last width must be that of "
                f"method.projector={list(self.projector)}"
            )
        if not 0 <= self.momentum <= 1:
            raise UserError(f"method.momentum={self.momentum}: use a number from 0 to 1")
        refuse_temperature(self.temperature)


class MoCoV3(nn.Module):
    """Query network, momentum network and symmetric InfoNCE; one view group of two views."""

    per_sample = False
    shuffled_view: int | None = None

    def __init__(self, config: MoCoV3Config, *, encoder: Encoder, recipe: Recipe) -> None:
        super().__init__()
        self.encoder = encoder
        if is_vision_transformer(encoder):
            fix_sincos_position_(encoder.backbone)
            if config.freeze_patch_projection:
                freeze_patch_projection_(encoder.backbone)
        self.projector = mlp_head([encoder.num_features, *config.projector], last_norm=True, last_affine=False)
        widths = [config.projector[-1], *config.predictor]
        self.predictor = mlp_head(widths, last_norm=True, last_affine=False)
        self.momentum_encoder = follower_of(self.encoder)
        self.momentum_projector = follower_of(self.projector)
        self.recipe = recipe
        self.temperature, self.momentum = config.temperature, config.momentum

    def embed(self, batch: ViewBatch) -> Mapping[str, Tensor]:
        """Queries and keys of both views, one view a call: {"q0", "q1", "k0", "k1": [L · b, D]}."""
        rows: dict[str, Tensor] = {}
        for view in (0, 1):
            images = batch.view("views", view)
            rows[f"q{view}"] = self.predictor(self.projector(self.encoder(images)))
            with torch.no_grad():
                rows[f"k{view}"] = self.momentum_projector(self.momentum_encoder(images))
        return rows

    def loss(self, rows: GlobalRows) -> Tensor:
        """2τ · (InfoNCE(q0, k1) + InfoNCE(q1, k0)) of own queries against the keys of the global batch."""
        own = rows.own("q0")
        num_samples = len(rows.rows["q0"])
        column = torch.arange(num_samples, device=rows.rows["q0"].device)[own]
        total = rows.rows["q0"].new_zeros(())
        for query, key in (("q0", "k1"), ("q1", "k0")):
            q, k = rows.rows[query][own], nn.functional.normalize(rows.rows[key], dim=1)
            total = total + info_nce_partial(q, k[own], k, temperature=self.temperature, positive_column=column)
        return total * (2 * self.temperature / num_samples)

    def before_step(self, info: StepInfo) -> None:
        """Let the momentum networks follow."""
        momentum = cosine_momentum(self.momentum, step=info.step, total_steps=info.total_steps)
        follow_(self.momentum_encoder, self.encoder, momentum=momentum)
        follow_(self.momentum_projector, self.projector, momentum=momentum)

    def after_step(self, rows: GlobalRows, keep: Tensor) -> None:
        """There is no queue."""
