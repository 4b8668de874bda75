"""LARS against a transcription in Python floats: zero norms, one-dimensional tensors, a rate that changes."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ssl_core.optim import LARS

Values = list[float]
RATES = (0.3, 0.5, 0.0, 0.2, 0.1)
MOMENTUM, DECAY, TRUST = 0.9, 1e-2, 1e-3


class ScalarLARS:
    """g ← g + decay · w;  v ← momentum · v + trust · g;  w ← w − rate · v, one number at a time."""

    def __init__(self, weights: Sequence[Values], adapted: Sequence[bool]) -> None:
        self.weights = [list(one) for one in weights]
        self.velocities = [[0.0] * len(one) for one in weights]
        self._adapted = adapted

    def step(self, gradients: Sequence[Values], rate: float) -> None:
        for w, v, g, adapted in zip(self.weights, self.velocities, gradients, self._adapted, strict=True):
            if adapted:
                g = [gi + DECAY * wi for gi, wi in zip(g, w, strict=True)]
                w_norm, g_norm = math.sqrt(sum(x * x for x in w)), math.sqrt(sum(x * x for x in g))
                trust = TRUST * w_norm / g_norm if w_norm > 0 and g_norm > 0 else 1.0
                g = [trust * gi for gi in g]
            for i in range(len(w)):
                v[i] = MOMENTUM * v[i] + g[i]
                w[i] -= rate * v[i]


def parameters() -> list[nn.Parameter]:
    """A matrix, a bias, a zero matrix, a convolution, a scalar."""
    shapes = [(3, 4), (5,), (2, 2), (2, 3, 1, 2), ()]
    made = [torch.randn(shape, generator=torch.Generator().manual_seed(i)).double() for i, shape in enumerate(shapes)]
    made[2].zero_()
    return [nn.Parameter(one) for one in made]


def gradient(parameter: Tensor, number: int, step: int) -> Tensor:
    return torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * step + number)).double()


def flat(tensors: Sequence[Tensor]) -> list[Values]:
    return [one.detach().flatten().tolist() for one in tensors]


def test_lars_is_its_transcription() -> None:
    mine = parameters()
    naive = ScalarLARS(flat(mine), [one.ndim > 1 for one in mine])
    optimizer = LARS(mine, lr=0.0, momentum=MOMENTUM, weight_decay=DECAY, trust_coefficient=TRUST)
    for step, rate in enumerate(RATES):
        for number, parameter in enumerate(mine):
            parameter.grad = gradient(parameter, number, step)
        before = [one.grad for one in mine if one.grad is not None]
        naive.step(flat(before), rate)
        optimizer.param_groups[0]["lr"] = rate
        kept = flat(before)
        optimizer.step()
        assert flat([one.grad for one in mine if one.grad is not None]) == kept
        for found, expected in zip(flat(mine), naive.weights, strict=True):
            assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)
    velocities = [optimizer.state[one]["velocity"] for one in mine]
    for found, expected in zip(flat(velocities), naive.velocities, strict=True):
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_zero_weights_are_not_adapted_away() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight], lr=0.5).step()
    assert torch.equal(weight.detach(), torch.full((2, 2), -0.5))


@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_a_gradient_of_norm_zero_changes_nothing(decay: float) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.full((2, 2), -decay)
    LARS([weight], lr=0.5, weight_decay=decay).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))


def test_one_dimensional_tensors_are_neither_decayed_nor_adapted() -> None:
    bias = nn.Parameter(torch.full((3,), 7.0))
    bias.grad = torch.ones(3)
    LARS([bias], lr=0.1, weight_decay=1.0).step()
    assert torch.allclose(bias.detach(), torch.full((3,), 6.9))


def test_parameters_without_gradient_are_left_alone() -> None:
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    used.grad = torch.ones(2, 2)
    optimizer = LARS([unused, used], lr=0.1, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(unused.detach(), torch.ones(2, 2))
    assert list(optimizer.state) == [used]


def test_groups_have_their_own_numbers() -> None:
    slow, fast = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.ones(1, 1))
    slow.grad, fast.grad = torch.ones(1, 1), torch.ones(1, 1)
    groups = [{"params": [slow], "lr": 1.0}, {"params": [fast], "lr": 10.0, "trust_coefficient": 0.01}]
    LARS(groups).step()
    assert slow.item() == pytest.approx(1 - 0.001)
    assert fast.item() == pytest.approx(1 - 0.1)


def test_state_dict_continues_exactly() -> None:
    def run(steps: range, state: dict[str, object] | None, weights: list[nn.Parameter]) -> LARS:
        optimizer = LARS(weights, lr=0.1, momentum=MOMENTUM, weight_decay=DECAY)
        if state is not None:
            optimizer.load_state_dict(state)
        for step in steps:
            for number, parameter in enumerate(weights):
                parameter.grad = gradient(parameter, number, step)
            optimizer.step()
        return optimizer

    whole, resumed = parameters(), parameters()
    run(range(6), None, whole)
    state = run(range(3), None, resumed).state_dict()
    run(range(3, 6), state, resumed)
    assert flat(resumed) == flat(whole)


def test_found_inf_holds_everything_where_it_is() -> None:
    weights = parameters()
    optimizer = LARS(weights, lr=0.1, momentum=MOMENTUM, weight_decay=DECAY)
    for step, bad in enumerate((0.0, 1.0, 0.0)):
        before = flat(weights) + [x for p in weights for x in flat([optimizer.state[p].get("velocity", p * 0)])]
        for number, parameter in enumerate(weights):
            parameter.grad = gradient(parameter, number, step)
        optimizer.found_inf = torch.tensor(bad)
        optimizer.step()
        after = flat(weights) + [x for p in weights for x in flat([optimizer.state[p]["velocity"]])]
        assert (after == before) == bool(bad)
