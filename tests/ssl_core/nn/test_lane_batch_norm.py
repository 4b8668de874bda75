"""Lane BatchNorm against the native layer on each lane by itself: values, gradients, statistics; no lane sees another.

Shapes: N rows = 4 lanes of 6, F = 5 features.
"""

from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

from ssl_core.collectives import Collectives
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.nn.lane_batch_norm import (
    LaneBatchNorm,
    commit_statistics,
    lane_batch_norms,
    lane_groups,
    take_statistics,
    use_lane_batch_norm,
    why_lane_by_lane,
)

LANES, ROWS, FEATURES = 4, 6, 5
SHAPES = {"2-D": (LANES * ROWS, FEATURES), "4-D": (LANES * ROWS, FEATURES, 3, 2)}


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def native_layer(shape: str, *, affine: bool = True, eps: float = 1e-5) -> nn.BatchNorm1d | nn.BatchNorm2d:
    kind = nn.BatchNorm2d if shape == "4-D" else nn.BatchNorm1d
    layer = kind(FEATURES, affine=affine, eps=eps).double()
    with torch.no_grad():
        for i, tensor in enumerate([*layer.parameters(), layer.running_mean, layer.running_var]):
            assert tensor is not None
            tensor.copy_(draws(FEATURES, seed=10 + i).abs() + 0.5)
    return layer


def gradients(output: Tensor, weights: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad((output * weights).sum() + (output**3).sum(), inputs))


@pytest.mark.parametrize("compiling", [False, True], ids=["lane by lane", "as a group norm"])
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("shape", SHAPES)
def test_training_is_the_native_layer_on_each_lane(
    shape: str, affine: bool, compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)  # the form that compilers get, run eagerly
    native = native_layer(shape, affine=affine, eps=1e-3)
    lane = LaneBatchNorm.from_native(native_layer(shape, affine=affine, eps=1e-3))
    x = draws(*SHAPES[shape]).requires_grad_()
    weights = draws(*SHAPES[shape], seed=1)
    before = native.state_dict()
    with lane_groups([lane], LANES, record=True):
        found = lane(x)
    expected = torch.cat([native(chunk) for chunk in x.chunk(LANES)])
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    found_gradients = gradients(found, weights, [x, *lane.parameters()])
    expected_gradients = gradients(expected, weights, [x, *native.parameters()])
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)
    running = native_layer(shape, affine=affine).state_dict()
    assert before.keys() == running.keys()
    assert torch.equal(lane.running_mean, running["running_mean"])
    assert torch.equal(lane.running_var, running["running_var"])


@pytest.mark.parametrize("compiling", [False, True], ids=["lane by lane", "as a group norm"])
def test_recorded_statistics_are_the_native_layers(compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    lane = LaneBatchNorm.from_native(native_layer("4-D", eps=1e-3))
    x = draws(*SHAPES["4-D"])
    with lane_groups([lane], LANES, record=True):
        lane(x)
    for chunk, (mean, variance) in zip(x.chunk(LANES), lane.recorded[0], strict=True):
        assert torch.allclose(mean, chunk.mean((0, 2, 3)), rtol=1e-12)
        assert torch.allclose(variance, chunk.var((0, 2, 3)), rtol=1e-10)


def test_bf16_images_on_a_cpu_go_the_fast_way_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    group_norm = Mock(wraps=torch.native_group_norm)
    monkeypatch.setattr(torch, "native_group_norm", group_norm)
    torch.manual_seed(0)
    fast, exact = (LaneBatchNorm.from_native(nn.BatchNorm2d(FEATURES)) for _ in range(2))
    exact.load_state_dict(fast.state_dict())
    images = torch.randn(LANES * ROWS, FEATURES, 16, 16).bfloat16() * 3 + 2
    upstream = torch.randn_like(images)
    found: list[list[Tensor]] = []
    for lane, memory_format in ((fast, torch.channels_last), (exact, torch.contiguous_format)):
        x = images.clone(memory_format=memory_format).requires_grad_()
        with lane_groups([lane], LANES, record=True):
            y = lane(x)
        assert group_norm.call_count == 1  # by the first alone
        assert y.is_contiguous(memory_format=memory_format)
        torch.relu_(y)  # as in a network: on top of the layer's output
        y.backward(upstream)
        assert x.grad is not None
        found.append([y, x.grad, *(p.grad for p in lane.parameters() if p.grad is not None), *lane.recorded])
    for one, other, tolerance in zip(*found, [2e-2, 2e-2, 5e-3, 5e-3, 1e-4], strict=True):
        error = (one.double() - other.double()).abs().max() / other.double().abs().max()
        assert error < tolerance


def test_no_lane_sees_another() -> None:
    lane = LaneBatchNorm.from_native(native_layer("2-D"))
    x = draws(*SHAPES["2-D"]).requires_grad_()
    with lane_groups([lane], LANES, record=False):
        y = lane(x)
        (gradient,) = torch.autograd.grad((y[:ROWS] ** 3).sum(), x)
        moved = x.detach().clone()
        moved[ROWS:] *= 100
        assert torch.equal(lane(moved)[:ROWS], y[:ROWS])
    assert gradient[:ROWS].abs().min() > 0
    assert gradient[ROWS:].abs().max() == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_running_statistics_move_by_a_tenth_of_the_mean_over_lanes(shape: str) -> None:
    lane = LaneBatchNorm.from_native(native_layer(shape))
    old_mean, old_var = lane.running_mean.clone(), lane.running_var.clone()
    x = draws(*SHAPES[shape])
    with lane_groups([lane], LANES, record=True):
        lane(x)
    assert torch.equal(lane.running_mean, old_mean)
    statistics = take_statistics([lane], LANES)
    assert statistics is not None
    assert statistics.shape == (LANES, 2 * FEATURES)
    commit_statistics([lane], torch.full_like(statistics, torch.nan), keep=torch.tensor(False))
    assert torch.equal(lane.running_mean, old_mean)
    assert torch.equal(lane.running_var, old_var)
    commit_statistics([lane], statistics, keep=torch.tensor(True))
    groups = [chunk.transpose(0, 1).reshape(FEATURES, -1) for chunk in x.chunk(LANES)]
    mean = torch.stack([group.mean(1) for group in groups]).mean(0)
    variance = torch.stack([group.var(1, unbiased=True) for group in groups]).mean(0)
    assert torch.allclose(lane.running_mean, 0.9 * old_mean + 0.1 * mean, rtol=1e-12)
    assert torch.allclose(lane.running_var, 0.9 * old_var + 0.1 * variance, rtol=1e-12)
    again = take_statistics([lane], LANES)
    assert again is not None
    assert torch.allclose(again[0, :FEATURES], lane.running_mean)


def test_statistics_of_several_layers_and_calls_find_their_layer() -> None:
    layers = [LaneBatchNorm(2).double(), LaneBatchNorm(3).double(), LaneBatchNorm(4).double()]
    first, second, wide = draws(8, 2), draws(8, 2, seed=1), draws(8, 4, seed=2)
    with lane_groups(layers, 2, record=True):
        layers[0](first)
        layers[0](second)
        layers[2](wide)
    statistics = take_statistics(layers, 2)
    assert statistics is not None
    assert statistics.shape == (2, 2 * (2 + 3 + 4))
    commit_statistics(layers, statistics, keep=torch.tensor(True))
    assert torch.allclose(layers[0].running_mean, 0.1 * (first.mean(0) + second.mean(0)) / 2)
    assert torch.equal(layers[1].running_mean, torch.zeros(3).double())
    assert torch.allclose(layers[1].running_var, torch.ones(3).double())
    assert torch.allclose(layers[2].running_mean, 0.1 * wide.mean(0))
    variances = torch.stack([part.var(0) for part in wide.chunk(2)]).mean(0)
    assert torch.allclose(layers[2].running_var, 0.9 + 0.1 * variances)


def test_chunks_of_lanes_give_the_statistics_of_the_whole() -> None:
    lane = LaneBatchNorm(FEATURES).double()
    x = draws(*SHAPES["2-D"])
    found: list[Tensor] = []
    for rows, lanes in ((x, LANES), (x[: 3 * ROWS], 3), (x[3 * ROWS :], 1)):
        with lane_groups([lane], lanes, record=True):
            lane(rows)
        statistics = take_statistics([lane], lanes)
        assert statistics is not None
        found.append(statistics)
    assert torch.equal(torch.cat(found[1:]), found[0])


def test_a_second_pass_records_nothing() -> None:
    lane = LaneBatchNorm(FEATURES).double()
    with lane_groups([lane], LANES, record=False):
        lane(draws(*SHAPES["2-D"]))
    assert lane.recorded == []
    lane(draws(*SHAPES["2-D"]))
    assert lane.recorded == []


def test_recording_ends_with_an_error() -> None:
    lane = LaneBatchNorm(FEATURES).double()
    with pytest.raises(RuntimeError, match="boom"), lane_groups([lane], LANES, record=True):
        raise RuntimeError("boom")
    lane(draws(*SHAPES["2-D"]))
    assert lane.recorded == []


@pytest.mark.parametrize("shape", SHAPES)
def test_eval_is_the_native_layer(shape: str) -> None:
    native = native_layer(shape).eval()
    lane = LaneBatchNorm.from_native(native_layer(shape).eval())
    x = draws(*SHAPES[shape])
    with lane_groups([lane], LANES, record=True):
        assert torch.equal(lane(x), native(x))
    assert lane.recorded == []
    assert not lane.training


def test_from_native_keeps_the_tensors_and_their_names() -> None:
    native = native_layer("4-D", eps=1e-3)
    lane = LaneBatchNorm.from_native(native)
    assert lane.weight is native.weight
    assert lane.bias is native.bias
    assert lane.running_mean is native.running_mean
    assert lane.running_var is native.running_var
    assert lane.eps == 1e-3
    assert set(native.state_dict()) - set(lane.state_dict()) == {"num_batches_tracked"}
    assert [name for name, _ in lane.named_parameters()] == ["weight", "bias"]


def test_float32_statistics_under_bf16_activations() -> None:
    lane = LaneBatchNorm(FEATURES)
    x = (draws(*SHAPES["4-D"]) + 3).bfloat16()
    with lane_groups([lane], LANES, record=True):
        y = lane(x)
    statistics = take_statistics([lane], LANES)
    assert statistics is not None
    assert y.dtype == torch.bfloat16
    assert statistics.dtype == torch.float32
    assert torch.allclose(statistics[0, :FEATURES], x[:ROWS].float().mean((0, 2, 3)), atol=1e-3)


def test_channels_last_stays_channels_last() -> None:
    lane = LaneBatchNorm(FEATURES).double()
    x = draws(*SHAPES["4-D"])
    columns = x.to(memory_format=torch.channels_last)
    with lane_groups([lane], LANES, record=False):
        assert lane(columns).is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(lane(columns), lane(x))


def test_every_batch_norm_of_a_network_is_replaced_and_computes_the_same() -> None:
    def network() -> nn.Module:
        inner = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU())
        return nn.Sequential(inner, nn.BatchNorm1d(5, affine=False), nn.GroupNorm(1, 5)).double()

    native, lane = network(), use_lane_batch_norm(network())
    lane.load_state_dict({k: v for k, v in native.state_dict().items() if not k.endswith("num_batches_tracked")})
    norms = lane_batch_norms(lane)
    assert len(norms) == 2
    assert not [one for one in lane.modules() if isinstance(one, nn.BatchNorm1d)]
    x = draws(24, 5)
    with lane_groups(norms, LANES, record=False):
        expected = torch.cat([native(chunk) for chunk in x.chunk(LANES)])
        assert torch.allclose(lane(x), expected, rtol=1e-12)
    assert torch.allclose(lane.eval()(x), network_eval(native, lane, x), rtol=1e-12)


def network_eval(native: nn.Module, lane: nn.Module, x: Tensor) -> Tensor:
    native.load_state_dict(lane.state_dict(), strict=False)
    return native.eval()(x)


@pytest.mark.parametrize("name", ["test_efficientnet", "regnetx_002"])
def test_timm_layers_that_norm_and_activate(name: str) -> None:
    config = ModelConfig(name=name, image_size=32)
    native = build_encoder(config, seed=1).double()
    lane = use_lane_batch_norm(build_encoder(config, seed=1)).double()
    norms = lane_batch_norms(lane)
    assert len(norms) > 5
    assert any(not isinstance(norm.act, nn.Identity) for norm in norms)
    x = draws(8, 3, 32, 32)
    with lane_groups(norms, 2, record=False):
        assert torch.allclose(lane(x), torch.cat([native(chunk) for chunk in x.chunk(2)]), rtol=1e-8, atol=1e-10)
    assert torch.allclose(lane.eval()(x), build_encoder(config, seed=1).double().eval()(x), rtol=1e-8, atol=1e-10)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU there may be no reason")
def test_why_lanes_do_not_share_a_launch_is_said_in_one_line() -> None:
    reason = why_lane_by_lane(Collectives())
    assert reason
    assert "\n" not in reason
