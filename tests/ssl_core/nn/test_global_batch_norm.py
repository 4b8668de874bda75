"""BatchNorm over all workers' rows: on one worker it is the native layer; the contract's tests have several."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_core.collectives import Collectives
from ssl_core.nn.global_batch_norm import global_batch_norm
from ssl_core.nn.lane_batch_norm import lane_batch_norms, lane_groups, take_statistics, use_lane_batch_norm

SHAPES = [(12, 5), (6, 5, 3, 4)]


def draws(*shape: int, seed: int = 0) -> Tensor:
    return 3 + 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def native(shape: tuple[int, ...], affine: bool = True) -> nn.BatchNorm1d | nn.BatchNorm2d:
    layer = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(shape[1], momentum=1.0, affine=affine).double()
    if affine:
        nn.init.uniform_(layer.weight)
        nn.init.uniform_(layer.bias)
    return layer


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_worker_is_the_native_layer(shape: tuple[int, ...], affine: bool) -> None:
    layer, x, dy = native(shape, affine), draws(*shape).requires_grad_(), draws(*shape, seed=1)
    inputs: list[Any] = [x, layer.weight, layer.bias] if affine else [x]
    expected = layer(x)
    y, seen = global_batch_norm(x, layer.weight, layer.bias, eps=layer.eps, collectives=Collectives())
    torch.testing.assert_close(y, expected)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    torch.testing.assert_close(seen, torch.stack([layer.running_mean, layer.running_var]))
    found = torch.autograd.grad(y, inputs, dy)
    for one, other in zip(found, torch.autograd.grad(expected, inputs, dy), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_it_is_differentiated_exactly() -> None:
    x, weight, bias = (draws(*shape, seed=i).requires_grad_() for i, shape in enumerate([(4, 2, 2, 2), (2,), (2,)]))

    def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return global_batch_norm(x, weight, bias, eps=1e-5, collectives=Collectives())[0]

    assert torch.autograd.gradcheck(normalised, (x, weight, bias))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_lower_precisions_keep_their_layout(dtype: torch.dtype, tolerance: float) -> None:
    exact = draws(8, 16, 6, 6).requires_grad_()
    weight, bias, dy = draws(16, seed=1), draws(16, seed=2), draws(8, 16, 6, 6, seed=3)
    y, seen = global_batch_norm(exact, weight, bias, eps=1e-5, collectives=Collectives())
    (dx,) = torch.autograd.grad(y, exact, dy)
    x = exact.detach().to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    low, low_seen = global_batch_norm(x, weight.float(), bias.float(), eps=1e-5, collectives=Collectives())
    (low_dx,) = torch.autograd.grad(low, x, dy.to(low.dtype).contiguous(memory_format=torch.channels_last))
    assert (low.dtype, low_dx.dtype, low_seen.dtype) == (dtype, dtype, torch.float32)
    assert low.is_contiguous(memory_format=torch.channels_last)
    assert low_dx.is_contiguous(memory_format=torch.channels_last)
    for found, expected in ((low, y), (low_dx, dx), (low_seen, seen)):
        assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_the_layer_records_one_statistic_for_all_lanes() -> None:
    module = use_lane_batch_norm(nn.Sequential(native((12, 5))), everyone=Collectives())
    layers = lane_batch_norms(module)
    x = draws(12, 5)
    with lane_groups(layers, 3, record=True):
        y = module(x)
    statistics = take_statistics(layers, 3)
    assert statistics.shape == (3, 10)
    for row in statistics:
        torch.testing.assert_close(row, torch.cat([x.mean(0), x.var(0)]))
    torch.testing.assert_close(y.mean(0), layers[0].bias)
