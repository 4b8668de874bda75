"""Filters and exact geometry against torchvision's on float tensors."""

from typing import Any

import numpy as np
import pytest
import torch

from ssl_core.torchvision_operators import declare_missing
from ssl_core.views.image import (
    Box,
    blur,
    blur_kernel_size,
    flip,
    pad_crop,
    solarise,
)

declare_missing()
from torchvision.transforms.v2 import functional  # noqa: E402 (needs the declaration above)

Image = np.ndarray[Any, Any]


def as_tensor(image: Image) -> torch.Tensor:
    """float32 [C, H, W] in the image's own levels."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()


def as_image(tensor: torch.Tensor) -> Image:
    return tensor.permute(1, 2, 0).numpy()


def test_flip_is_exact(noise: Image) -> None:
    for image in (noise, noise[..., :1]):
        assert (flip(image) == image[:, ::-1]).all()


@pytest.mark.parametrize("sigma", [0.1, 0.35, 0.7, 1.0, 1.4, 2.0])
@pytest.mark.parametrize("kernel_size", [3, 9, 23])
def test_blur_is_torchvisions(noise: Image, photos: list[Image], sigma: float, kernel_size: int) -> None:
    for image in (noise, photos[0], np.full((30, 30, 3), 255, np.uint8)):
        expected = as_image(functional.gaussian_blur(as_tensor(image), [kernel_size] * 2, [sigma] * 2))
        assert np.abs(blur(image, sigma=sigma, kernel_size=kernel_size) - expected).max() <= 0.6


def test_blur_kernel_is_a_tenth_of_the_image() -> None:
    assert [blur_kernel_size(size) for size in (224, 96, 64, 32, 10)] == [23, 9, 7, 3, 1]


def test_a_kernel_of_one_tap_does_not_blur(noise: Image) -> None:
    assert (blur(noise, sigma=2.0, kernel_size=1) == noise).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_number_of_channels(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    for made in (flip(image), blur(image, sigma=1.0, kernel_size=9), solarise(image)):
        assert made.shape == image.shape
        assert made.dtype == np.uint8


def test_solarise_is_torchvisions(noise: Image) -> None:
    whole = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    for image in (noise, whole):
        expected = functional.solarize(torch.from_numpy(image).permute(2, 0, 1), threshold=128)
        assert (solarise(image) == as_image(expected)).all()


@pytest.mark.parametrize(("top", "left"), [(0, 0), (-4, -4), (4, 4), (-3, 2), (1, -4)])
def test_padded_crop_is_torchvisions(top: int, left: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = as_image(functional.crop(functional.pad(as_tensor(image), [4]), top + 4, left + 4, 32, 32))
    made = pad_crop(image, Box(top, left, 32, 32))
    assert (made == expected).all()
    assert made.dtype == np.uint8


def test_padded_crop_outside_the_image_is_black(noise: Image) -> None:
    assert (pad_crop(noise, Box(-50, 0, 10, 10)) == 0).all()
    assert (pad_crop(noise, Box(0, 100, 10, 10)) == 0).all()


def test_inputs_are_left_alone(noise: Image) -> None:
    before = noise.copy()
    blur(noise, sigma=1.0, kernel_size=5)
    flip(noise)
    solarise(noise)
    pad_crop(noise, Box(-1, -1, 40, 48))
    assert (noise == before).all()
