"""Heads: which layers they have, and which of them have a bias."""

import pytest
import torch
from torch import nn

from ssl_core.nn.heads import mlp_head


def described(head: nn.Sequential) -> list[str]:
    words: list[str] = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            bias = "" if layer.bias is None else " + bias"  # pyright: ignore[reportUnnecessaryComparison] (the stubs say never None)
            words.append(f"{layer.in_features}-{layer.out_features}{bias}")
        elif isinstance(layer, nn.BatchNorm1d):
            words.append(f"norm {layer.num_features}" + ("" if layer.affine else " plain"))
        else:
            words.append(type(layer).__name__)
    return words


@pytest.mark.parametrize(
    ("widths", "options", "expected"),
    [
        ([6, 2], {}, ["6-2 + bias"]),
        ([6, 4, 2], {}, ["6-4", "norm 4", "ReLU", "4-2 + bias"]),
        ([6, 4, 3, 2], {}, ["6-4", "norm 4", "ReLU", "4-3", "norm 3", "ReLU", "3-2 + bias"]),
        ([6, 4, 2], {"last_norm": True}, ["6-4", "norm 4", "ReLU", "4-2", "norm 2"]),
        ([6, 2], {"last_norm": True, "last_affine": False}, ["6-2", "norm 2 plain"]),
    ],
)
def test_layers(widths: list[int], options: dict[str, bool], expected: list[str]) -> None:
    head = mlp_head(widths, **options)
    assert described(head) == expected
    assert head(torch.randn(4, widths[0])).shape == (4, widths[-1])
