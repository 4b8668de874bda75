"""Momentum encoders: networks that follow another by an exponential moving average of its parameters."""

from copy import deepcopy
from math import cos, pi
from typing import Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)
_FOREACH: Any = torch  # torch exports the foreach operations without typing them


def follower_of(source: Network) -> Network:
    """A copy that no optimiser trains."""
    return deepcopy(source).requires_grad_(False)


@torch.no_grad()
def follow_(target: nn.Module, source: nn.Module, *, momentum: float) -> None:
    """target ← momentum · target + (1 − momentum) · source, over parameters (MoCo, arXiv 1911.05722, eq. 2)."""
    _FOREACH._foreach_lerp_(list(target.parameters()), list(source.parameters()), 1 - momentum)


def cosine_momentum(start: float, *, step: int, total_steps: int) -> float:
    """Momentum that rises from `start` to 1 along half a cosine (BYOL, arXiv 2006.07733, section 3.2)."""
    return 1 - (1 - start) * (cos(pi * step / total_steps) + 1) / 2
