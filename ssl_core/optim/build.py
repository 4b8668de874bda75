"""From values to an optimiser: which one, its parameter groups, and its rate at each step."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ssl_core.errors import UserError
from ssl_core.optim.lars import LARS


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """An optimiser and its schedule.

    `base_rate` is the rate at a global batch of 256 under the linear rule (rate = base_rate · B / 256), the factor of
    √B under the square-root rule (rate = base_rate · √B, SimCLR appendix B.1), the rate itself without a rule.
    `warmup` is the share of all steps over which the rate rises linearly; after it, it falls to 0 by a half cosine.
    A gradient whose norm is above `clip_norm` is scaled down to it (Pascanu et al., arXiv 1211.5063). With
    `layer_decay`, each layer of the encoder has that factor of the rate of the layer above it, heads have all of it
    (ELECTRA, arXiv 2003.10555; 0.65–0.75 for fine-tuning Vision Transformers, MAE, arXiv 2111.06377, table 9).
    """

    name: Literal["lars", "sgd", "adamw"] = "lars"
    base_rate: float = 0.3
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    weight_decay: float = 1e-6
    momentum: float = 0.9
    trust_coefficient: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = 0.1
    clip_norm: float | None = None
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"optim.clip_norm={self.clip_norm}: use a number above 0 or null")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise UserError(f"optim.layer_decay={self.layer_decay}: use a number above 0 and at most 1, or null")


def peak_rate(config: OptimConfig, global_batch: int) -> float:
    """The highest rate of the schedule at this global batch."""
    factor = {"linear": global_batch / 256, "sqrt": math.sqrt(global_batch), "none": 1.0}
    return config.base_rate * factor[config.scaling]


def learning_rate(config: OptimConfig, *, step: int, total_steps: int, global_batch: int) -> float:
    """The rate of step `step` (0 … total_steps − 1): linear warm-up, then half a cosine to 0."""
    warmup_steps = round(config.warmup * total_steps)
    if step < warmup_steps:
        share = (step + 1) / warmup_steps
    else:
        share = 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))
    return peak_rate(config, global_batch) * share


def build_optimizer(
    config: OptimConfig, parameters: Iterable[nn.Parameter], *, rate_scales: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.Optimizer:
    """The optimiser over all trainable parameters; those of fewer than two dimensions are not decayed.

    Each takes `found_inf`, a float [] tensor, as torch's fused optimisers do: with 1 in it, `step` changes nothing.

    Args:
        config: which one.
        parameters: of the whole method, in a fixed order.
        rate_scales: each parameter's factor of the rate, 1 where it is not named; a group has it as `rate_scale`.
    """
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            members.setdefault(((rate_scales or {}).get(parameter, 1.0), decay), []).append(parameter)
    # matrices before vectors where both have one rate
    groups = [
        {"params": members[scale, decay], "weight_decay": decay, "rate_scale": scale}
        for scale, decay in sorted(members, reverse=True)
    ]
    match config.name:
        case "lars":
            return LARS(groups, lr=0.0, momentum=config.momentum, trust_coefficient=config.trust_coefficient)
        case "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=True)
