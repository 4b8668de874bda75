"""MoCo v1 and v2: Momentum Contrast (He et al., arXiv 1911.05722) and its improved baselines (arXiv 2003.04297).

Algorithm 1 of v1: the query of a sample is drawn to the key that a momentum encoder (eq. 2) makes of its other view,
and away from the keys of earlier steps, which wait in a queue (eq. 1). v2 has an MLP head, temperature 0.2 and stronger
views. The momentum update comes before the forward pass, and a step's keys enter the queue after it, in lane order.

Departures: keys are regrouped across lanes instead of GPUs (section 3.3, shuffling BN), so BatchNorm sees the same
groups whatever the number of workers; the learning rate is warmed up and annealed by a cosine in both versions, where
v1 drops it in steps; a batch need not divide the queue.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssl_core.data.lane_views import Recipe
from ssl_core.errors import UserError
from ssl_core.losses import info_nce_partial
from ssl_core.methods.base import StepInfo, refuse_temperature
from ssl_core.nn.backbones import Encoder
from ssl_core.nn.ema import follow_, follower_of
from ssl_core.nn.heads import mlp_head
from ssl_core.nn.queue import EmbeddingQueue
from ssl_core.types import GlobalRows, ViewBatch


@dataclass(frozen=True, kw_only=True)
class MoCoConfig:
    """MoCo's own numbers; None goes by version.

    Attributes:
        version: 1 (arXiv 1911.05722) or 2 (arXiv 2003.04297).
        temperature: None is 0.07 in v1 and 0.2 in v2.
        projector: widths after the encoder's; None is [128] in v1 and [2048, 128] in v2.
        queue: K, keys that wait as negatives.
        momentum: m of the key encoder.
        shuffle: whether keys are regrouped across lanes; only an encoder or head with BatchNorm needs it.
    """

    version: Literal[1, 2] = 2
    temperature: float | None = None
    projector: tuple[int, ...] | None = None
    queue: int = 65536
    momentum: float = 0.999
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        if self.queue < 1:
            raise UserError(f"method.queue={self.queue}: MoCo needs at least one key in its queue")
        if not 0 <= self.momentum < 1:
            raise UserError(f"method.momentum={self.momentum}: use at least 0 and less than 1")
        if self.temperature is not None:
            refuse_temperature(self.temperature)


def moco_views(config: MoCoConfig) -> Mapping[str, Any]:
    """What differs between the versions' views: v1 always jitters, by more hue, and does not blur."""
    return {"jitter": 1.0, "hue": 0.4, "blur": 0.0} if config.version == 1 else {"jitter": 0.8, "hue": 0.1}


class MoCo(nn.Module):
    """Query and key networks and the queue; one view group of two views, of which the second is the key's."""

    per_sample = False

    def __init__(self, config: MoCoConfig, *, encoder: Encoder, recipe: Recipe) -> None:
        super().__init__()
        widths = config.projector or ((128,) if config.version == 1 else (2048, 128))
        self.encoder = encoder
        self.projector = mlp_head([encoder.num_features, *widths], norm=False)
        self.key_encoder = follower_of(self.encoder)
        self.key_projector = follower_of(self.projector)
        self.queue = EmbeddingQueue(config.queue, widths[-1])
        self.recipe = recipe
        self.shuffled_view = 1 if config.shuffle else None
        self.temperature = config.temperature or (0.07 if config.version == 1 else 0.2)
        self.momentum = config.momentum

    def embed(self, batch: ViewBatch) -> Mapping[str, Tensor]:
        """Queries of the first view and keys of the second: {"q": [L · b, D], "k": the same}.

        Where keys were regrouped, {"slot": int64 [L · b]} says which sample of the global batch each key is of.
        """
        q = self.projector(self.encoder(batch.view("views", 0)))
        with torch.no_grad():
            k = self.key_projector(self.key_encoder(batch.view("views", 1)))
        return {"q": q, "k": k} | ({} if batch.shuffled_slots is None else {"slot": batch.shuffled_slots})

    def loss(self, rows: GlobalRows) -> Tensor:
        """InfoNCE of own queries against their keys and the queue, as this worker's part of the mean."""
        own = rows.own("q")
        total = info_nce_partial(
            rows.rows["q"][own], unit_keys(rows)[own], self.queue.rows, temperature=self.temperature
        )
        return total / len(rows.rows["q"])

    def before_step(self, info: StepInfo) -> None:
        """Let the key networks follow."""
        follow_(self.key_encoder, self.encoder, momentum=self.momentum)
        follow_(self.key_projector, self.projector, momentum=self.momentum)

    def after_step(self, rows: GlobalRows, keep: Tensor) -> None:
        """Put the step's keys into the queue, in lane order."""
        self.queue.put_(unit_keys(rows), keep)


def unit_keys(rows: GlobalRows) -> Tensor:
    """The keys of the global batch in lane order, whatever lanes made them, at length 1."""
    k_ND = nn.functional.normalize(rows.rows["k"], dim=1)
    return k_ND[rows.rows["slot"].argsort()] if "slot" in rows.rows else k_ND
