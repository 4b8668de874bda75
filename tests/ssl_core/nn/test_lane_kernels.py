"""BatchNorm by lanes on a GPU, all lanes at once, against the native layer on each lane in float64."""

import pytest
import torch
from torch import Tensor, nn

from ssl_core.collectives import Collectives
from ssl_core.nn.lane_batch_norm import LaneBatchNorm, lane_groups, why_lane_by_lane

pytestmark = pytest.mark.gpu
SHAPES = [(24, 5), (24, 5, 3, 2), (32, 70, 9, 11), (6144, 130), (8, 64, 112, 112), (256, 2048, 1, 1)]
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def trained(layer: LaneBatchNorm, x: Tensor, dy: Tensor, lanes: int) -> list[Tensor]:
    """y, the gradients of x, weight and bias, and what was seen."""
    x = x.detach().requires_grad_()
    with lane_groups([layer], lanes, record=True):
        y = layer(x)
    gradients = torch.autograd.grad(y, [x, *layer.parameters()], dy)
    return [y.detach(), *gradients, layer.recorded.pop()]


def test_lanes_share_a_launch() -> None:
    assert why_lane_by_lane(Collectives()) is None  # or the tests below would see the other way


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("lanes", [2, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_values_and_gradients_are_the_native_layers(
    dtype: torch.dtype, shape: tuple[int, ...], lanes: int, affine: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 3 + 50).to(dtype)  # sums of squares would cancel
    dy = torch.randn(shape, generator=generator).to(dtype)
    kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
    exact = LaneBatchNorm.from_native(kind(shape[1], affine=affine, eps=1e-3).double())
    real = torch.float64 if dtype == torch.float64 else torch.float32
    fast = LaneBatchNorm.from_native(kind(shape[1], affine=affine, eps=1e-3).to("cuda", real))
    for layer in (exact, fast):
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator(parameter.device).manual_seed(1))
    fast.load_state_dict(exact.state_dict())
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    expected = trained(exact, x.double(), dy.double(), lanes)
    there = [one.cuda().contiguous(memory_format=layout) for one in (x, dy)]
    found = trained(fast, there[0], there[1], lanes)
    assert found[0].dtype == found[1].dtype == dtype
    assert found[0].is_contiguous(memory_format=layout)
    for one, other in zip(found, expected, strict=True):
        assert (one.cpu().double() - other).abs().max() <= TOLERANCES[dtype] * other.abs().max()
    again = trained(fast, there[0], there[1], lanes)
    for one, other in zip(again, found, strict=True):
        assert torch.equal(one, other)


def test_images_with_channels_first_are_laid_out_anew() -> None:
    x, dy = torch.randn(2, 8, 5, 3, 2, device="cuda").unbind()
    one_layer, other_layer = (LaneBatchNorm.from_native(nn.BatchNorm2d(5).cuda()) for _ in range(2))
    channels_first = trained(one_layer, x, dy, 2)
    last = [one.contiguous(memory_format=torch.channels_last) for one in (x, dy)]
    channels_last = trained(other_layer, last[0], last[1], 2)
    for one, other in zip(channels_first, channels_last, strict=True):
        assert torch.equal(one, other)
