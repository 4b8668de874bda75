"""The optimiser's groups, and its rate at every step."""

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssl_core.errors import UserError
from ssl_core.optim import OptimConfig, build_optimizer, learning_rate
from ssl_core.optim.build import peak_rate


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


@pytest.mark.parametrize(("name", "kind"), [("lars", "LARS"), ("sgd", "SGD"), ("adamw", "AdamW")])
def test_matrices_are_decayed_and_vectors_are_not(name: Literal["lars", "sgd", "adamw"], kind: str) -> None:
    model = network()
    model[2].weight.requires_grad_(False)
    config = OptimConfig(name=name, weight_decay=0.04, momentum=0.8, betas=(0.7, 0.95), trust_coefficient=0.02)
    optimizer = build_optimizer(config, model.parameters())
    assert type(optimizer).__name__ == kind
    decayed, plain = optimizer.param_groups
    assert [p is q for p, q in zip(decayed["params"], [model[0].weight], strict=True)] == [True]
    vectors = [model[0].bias, model[1].weight, model[1].bias, model[2].bias]
    assert [p is q for p, q in zip(plain["params"], vectors, strict=True)] == [True] * 4
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.04, 0.0)
    for group in optimizer.param_groups:
        if name == "adamw":
            assert group["betas"] == (0.7, 0.95)
        else:
            assert group["momentum"] == 0.8
            assert group.get("trust_coefficient") == (0.02 if name == "lars" else None)


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_one_step_decays_what_is_decayed(name: Literal["lars", "sgd", "adamw"]) -> None:
    matrix, vector = nn.Parameter(torch.full((2, 2), 2.0)), nn.Parameter(torch.full((2,), 2.0))
    config = OptimConfig(name=name, weight_decay=0.1, trust_coefficient=1.0)
    optimizer = build_optimizer(config, [matrix, vector])
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert float(matrix.detach().max()) < 2
    assert torch.equal(vector.detach(), torch.full((2,), 2.0))


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw"])
def test_found_inf_holds_weights_where_they_are(name: Literal["lars", "sgd", "adamw"]) -> None:
    model = network()
    optimizer = build_optimizer(OptimConfig(name=name), model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for bad in (0.0, 1.0, 0.0):
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.found_inf = torch.tensor(bad)  # pyright: ignore[reportAttributeAccessIssue] (torch's seam)
        optimizer.step()
        after = nn.utils.parameters_to_vector(model.parameters()).detach()
        assert torch.equal(after, before) == bool(bad)


def test_a_network_of_vectors_has_one_group() -> None:
    assert len(build_optimizer(OptimConfig(), [nn.Parameter(torch.ones(3))]).param_groups) == 1


def test_parameters_of_one_rate_and_decay_share_a_group() -> None:
    model = network()
    parameters = dict(model.named_parameters())
    scales = {parameters["0.weight"]: 0.5, parameters["0.bias"]: 0.5, parameters["1.weight"]: 0.25}
    groups = build_optimizer(OptimConfig(weight_decay=0.1), model.parameters(), rate_scales=scales).param_groups
    assert [(g["rate_scale"], g["weight_decay"], len(g["params"])) for g in groups] == [
        (1.0, 0.1, 1),  # the linear layer's matrix
        (1.0, 0.0, 2),  # its bias, and BatchNorm's
        (0.5, 0.1, 1),
        (0.5, 0.0, 1),
        (0.25, 0.0, 1),
    ]


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5])
def test_a_layer_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match="above 0 and at most 1"):
        OptimConfig(layer_decay=decay)


@pytest.mark.parametrize(
    ("scaling", "base", "batch", "peak"),
    [("linear", 0.3, 4096, 4.8), ("linear", 0.3, 256, 0.3), ("sqrt", 0.075, 4096, 4.8), ("none", 0.3, 4096, 0.3)],
)
def test_scaling_rules(scaling: Literal["linear", "sqrt", "none"], base: float, batch: int, peak: float) -> None:
    assert peak_rate(OptimConfig(base_rate=base, scaling=scaling), batch) == pytest.approx(peak)


def rates(config: OptimConfig, total: int, batch: int = 256) -> list[float]:
    return [learning_rate(config, step=step, total_steps=total, global_batch=batch) for step in range(total)]


def test_the_schedule_is_pinned() -> None:
    found = rates(OptimConfig(base_rate=0.5, scaling="linear", warmup=0.1), 100, batch=512)
    assert found[:11] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0])
    assert found[55] == pytest.approx(0.5)
    assert found[40] == pytest.approx(0.75)
    assert found[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))


@given(
    total=st.integers(1, 400),
    warmup=st.floats(0, 1),
    scaling=st.sampled_from(["linear", "sqrt", "none"]),
    batch=st.integers(1, 10_000),
)
def test_the_rate_rises_to_its_peak_and_falls_towards_zero(
    total: int, warmup: float, scaling: Literal["linear", "sqrt", "none"], batch: int
) -> None:
    config = OptimConfig(warmup=warmup, scaling=scaling)
    found = rates(config, total, batch)
    peak = peak_rate(config, batch)
    top = found.index(max(found))
    warm = round(warmup * total)
    assert found[top] == pytest.approx(peak)
    assert found[:top] == sorted(found[:top])
    assert found[max(warm, top) :] == sorted(found[max(warm, top) :], reverse=True)
    assert all(0 < rate <= peak * (1 + 1e-12) for rate in found)
    if warm:
        assert found[0] == pytest.approx(peak / warm)
    if 0 < warm < total:
        assert found[warm] == pytest.approx(peak)
        beyond = learning_rate(config, step=total, total_steps=total, global_batch=batch)
        assert beyond == pytest.approx(0, abs=1e-12 * peak)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert rates(replace(OptimConfig(), warmup=0.0), 10)[0] == pytest.approx(0.3)
