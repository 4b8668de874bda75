"""LARS: layer-wise adaptive rate scaling (You, Gitman and Ginsburg, arXiv 1708.03888), by foreach operations."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# torch's own optimisers are built on these; they are not exported by name
_FOREACH: Any = torch


class LARS(torch.optim.Optimizer):
    """LARS with momentum; the rate is applied outside the velocity, as in MoCo v3's, MAE's and Barlow Twins' code.

    g ← g + decay · w;  trust = η ‖w‖ / ‖g‖ (1 where a norm is 0);  v ← momentum · v + trust · g;  w ← w − rate · v.
    Tensors of fewer than two dimensions (biases, normalisation) are neither decayed nor adapted. Google's SimCLR code
    multiplies the rate into the velocity instead; the two differ while the rate changes.

    Where the attribute `found_inf` is a tensor (float []) that holds 1, finite gradients given, a step changes nothing;
    the host need not know.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        momentum: of the velocity.
        weight_decay: L2 coefficient, added to the gradient before the trust ratio.
        trust_coefficient: η.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] (torch overloads it)
        """One update of every parameter that has a gradient; `closure` is not supported."""
        assert closure is None, "LARS takes no closure"
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            skip = parameters[0].new_zeros(()) if self.found_inf is None else self.found_inf.to(parameters[0].dtype)
            adapted = [p for p in parameters if p.ndim > 1]
            plain = [p for p in parameters if p.ndim <= 1]
            updates = self._adapted_gradients(adapted, group, take=1 - skip)
            updates += _FOREACH._foreach_mul([p.grad for p in plain], 1 - skip) if plain else []
            self._move(adapted + plain, updates, momentum=group["momentum"], rate=group["lr"], skip=skip)

    def _move(
        self, parameters: list[Tensor], updates: list[Tensor], *, momentum: float, rate: float, skip: Tensor
    ) -> None:
        """v ← momentum · v + update; w ← w − rate · v; or neither, where `skip` is 1 and updates are 0."""
        velocities = [self._velocity(p) for p in parameters]
        take = 1 - skip
        _FOREACH._foreach_mul_(velocities, momentum * take + skip)
        _FOREACH._foreach_add_(velocities, updates)
        _FOREACH._foreach_add_(parameters, _FOREACH._foreach_mul(velocities, -rate * take))

    def _adapted_gradients(self, parameters: list[Tensor], group: dict[str, Any], *, take: Tensor) -> list[Tensor]:
        """Gradients with decay, times trust, times `take`."""
        if not parameters:
            return []
        gradients = list(_FOREACH._foreach_add([p.grad for p in parameters], parameters, alpha=group["weight_decay"]))
        w_norm = torch.stack(_FOREACH._foreach_norm(parameters))
        g_norm = torch.stack(_FOREACH._foreach_norm(gradients))
        trust = torch.where((w_norm > 0) & (g_norm > 0), group["trust_coefficient"] * w_norm / g_norm, 1.0)
        _FOREACH._foreach_mul_(gradients, list((trust * take).unbind()))
        return gradients

    def _velocity(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        return state["velocity"]
