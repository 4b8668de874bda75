"""Gradients in one flat buffer per run, reduced bucket by bucket while backward still runs."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ssl_core.collectives import Collectives, Pending

_BUCKET_BYTES = 25 << 20


class FlatGradients:
    """Every parameter's `.grad` is a view into one flat buffer, which is cut into buckets.

    Layout and buckets are a function of the parameters alone, and buckets are summed over workers in one fixed order.
    (DDP's wrapper rebuilds its buckets after the first step of each attempt, which changes the order of sums, so that a
    resumed run with three workers differs from an undisturbed one.) The last parameters come first, as backward gets to
    them first.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, collectives: Collectives) -> None:
        first = parameters[0]
        self.buffer = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
        self._collectives = collectives
        self._bucket_of: dict[nn.Parameter, int] = {}
        self._buckets: list[Tensor] = []
        self._sizes: list[int] = []  # parameters in each bucket
        start = bucket_start = 0
        for parameter in reversed(parameters):
            stop = start + parameter.numel()
            # the same strides as the parameter's, so that channels_last weights get channels_last gradients
            parameter.grad = self.buffer[start:stop].as_strided(parameter.size(), parameter.stride())
            if not self._buckets or (stop - bucket_start) * first.element_size() > _BUCKET_BYTES:
                bucket_start = start
                self._buckets.append(self.buffer[start:start])
                self._sizes.append(0)
            self._buckets[-1] = self.buffer[bucket_start:stop]
            self._sizes[-1] += 1
            self._bucket_of[parameter] = len(self._buckets) - 1
            start = stop
        self._missing = list(self._sizes)
        self._sent = 0
        self._under_way: list[Pending] = []

    def zero_(self) -> None:
        """Start a step."""
        self.buffer.zero_()
        self._missing, self._sent = list(self._sizes), 0

    @contextmanager
    def last_backward(self) -> Generator[None]:
        """Within: the last backward pass of the step; a bucket whose gradients are complete goes on its way.

        Its hooks are taken away again: one that stays keeps the parameters and the buffer in memory for ever, since
        Python's garbage collector does not see the way through torch from a parameter to its hook and back.
        """
        watched = self._bucket_of if self._collectives.world > 1 else ()
        hooks = [parameter.register_post_accumulate_grad_hook(self._complete) for parameter in watched]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _complete(self, parameter: Tensor) -> None:
        self._missing[self._bucket_of[parameter]] -= 1  # pyright: ignore[reportArgumentType] (it is a parameter)
        while self._sent < len(self._buckets) and self._missing[self._sent] == 0:
            self._send_next()

    def _send_next(self) -> None:
        self._under_way.append(self._collectives.start_sum_(self._buckets[self._sent]))
        self._sent += 1

    def sum_over_workers_(self) -> None:
        """Add all workers' gradients; each holds the gradient of its part of the loss, so the sum is the whole one."""
        while self._sent < len(self._buckets):  # those of parameters that backward did not get to
            self._send_next()
        for pending in self._under_way:
            pending.wait()
        self._under_way.clear()  # each keeps connections open, and so others waiting for a worker that has left

    def clear_(self, *, unless: Tensor) -> None:
        """Set everything to 0 where `unless` (bool []) is false, whatever is in it."""
        self.buffer.masked_fill_(~unless, 0)

    def clip_(self, largest: float) -> None:
        """Scale everything down so that the norm is at most `largest`."""
        self.buffer.mul_((largest / self.norm()).clamp_(max=1))

    def norm(self) -> Tensor:
        """Euclidean norm of the whole gradient, a 0-d tensor."""
        return torch.linalg.vector_norm(self.buffer)
