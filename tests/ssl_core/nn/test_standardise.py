"""Pixels to what networks take."""

import pytest
import torch

from ssl_core.nn.standardise import Standardise


@pytest.mark.parametrize(
    ("mean", "std", "channels"), [((0.5, 0.4, 0.3), (0.2, 0.3, 0.25), 3), ((0.5,), (0.2,), 3), ((0.5,), (0.2,), 1)]
)
def test_each_channel_has_its_own(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> None:
    standardise = Standardise(mean, std, dtype=torch.float64, device=torch.device("cpu"))
    for width in (7, 4, 7):  # views of several sizes, in turn
        pixels = torch.randint(0, 256, (2, 5, width, channels), dtype=torch.uint8)
        before = pixels.clone()
        expected = (pixels.double() / 255 - torch.tensor(mean, dtype=torch.float64)) / torch.tensor(std).double()
        torch.testing.assert_close(standardise(pixels), expected, rtol=0, atol=1e-6)
        assert torch.equal(pixels, before)
