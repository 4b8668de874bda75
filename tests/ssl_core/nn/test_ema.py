"""Momentum encoders follow by the average that the papers give."""

import torch
from torch import nn

from ssl_core.nn.ema import cosine_momentum, follow_, follower_of


def test_follows_by_the_weighted_mean_and_is_not_trained() -> None:
    source = nn.Linear(2, 2)
    target = follower_of(source)
    start = source.weight.detach().clone()
    with torch.no_grad():
        source.weight.add_(1)
    follow_(target, source, momentum=0.9)
    assert torch.allclose(target.weight, start + 0.1)
    assert not any(parameter.requires_grad for parameter in target.parameters())


def test_momentum_rises_from_its_start_to_one() -> None:
    assert cosine_momentum(0.99, step=0, total_steps=10) == 0.99
    assert abs(cosine_momentum(0.99, step=5, total_steps=10) - 0.995) < 1e-12
    assert cosine_momentum(0.99, step=10, total_steps=10) == 1
