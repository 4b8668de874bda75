"""Gradients in one flat buffer per run: reduced at once, in an order that is fixed when the run is built."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssl_core.collectives import Collectives


class FlatGradients:
    """Every parameter's `.grad` is a view into one flat buffer.

    The buffer's layout is a function of the parameters alone. (DDP's wrapper rebuilds its buckets after the first step
    of each attempt, which changes the order of sums, so that a resumed run with three workers differs from an
    undisturbed one.)
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        first = parameters[0]
        self.buffer = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
        start = 0
        for parameter in parameters:
            part = self.buffer[start : start + parameter.numel()]
            # the same strides as the parameter's, so that channels_last weights get channels_last gradients
            parameter.grad = part.as_strided(parameter.size(), parameter.stride())
            start += parameter.numel()

    def zero_(self) -> None:
        """Start a step."""
        self.buffer.zero_()

    def sum_over_workers_(self, collectives: Collectives) -> None:
        """Add all workers' gradients; each holds the gradient of its part of the loss, so the sum is the whole one."""
        collectives.sum_(self.buffer)

    def norm(self) -> Tensor:
        """Euclidean norm of the whole gradient, a 0-d tensor."""
        return torch.linalg.vector_norm(self.buffer)
