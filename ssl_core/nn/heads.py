"""Projectors and predictors: the small networks between the encoder and the loss."""

from itertools import pairwise

from torch import nn


def mlp_head(
    widths: list[int], *, norm: bool = True, last_norm: bool = False, last_affine: bool = True
) -> nn.Sequential:
    """Linear – BatchNorm – ReLU layers, ending in a linear layer.

    Args:
        widths: [input, hidden …, output]; two widths give a single linear layer.
        norm: BatchNorm before each ReLU (MoCo v2's head has none).
        last_norm: BatchNorm after the last layer as well (SimCLR v1's TF code, MoCo v3).
        last_affine: whether that last BatchNorm has weight and bias.

    Linear layers before a BatchNorm have no bias: the normalisation would remove it.
    """
    layers: list[nn.Module] = []
    for index, (narrow, wide) in enumerate(pairwise(widths)):
        last = index == len(widths) - 2
        layers.append(nn.Linear(narrow, wide, bias=not last_norm if last else not norm))
        if not last:
            layers += [*([nn.BatchNorm1d(wide)] if norm else []), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(nn.BatchNorm1d(wide, affine=last_affine))
    return nn.Sequential(*layers)
