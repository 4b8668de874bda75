"""Geometry and filters against torchvision's on float tensors."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from ssl_core.torchvision_operators import declare_missing
from ssl_core.views.image import (
    Box,
    Interpolation,
    blur,
    blur_kernel_size,
    crop_resize,
    flip,
    pad_crop,
    solarise,
)

declare_missing()
from torchvision.transforms.v2 import InterpolationMode, functional  # noqa: E402 (needs the declaration above)

Image = np.ndarray[Any, Any]


def as_tensor(image: Image) -> torch.Tensor:
    """float32 [C, H, W] in the image's own levels."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()


def as_image(tensor: torch.Tensor) -> Image:
    return tensor.permute(1, 2, 0).numpy()


def reference_crop(image: Image, box: Box, height: int, width: int, interpolation: Interpolation) -> Image:
    mode = InterpolationMode(interpolation)
    made = functional.resized_crop(
        as_tensor(image), box.top, box.left, box.height, box.width, [height, width], mode, antialias=True
    )
    return as_image(made).clip(0, 255)


ENLARGED = [Box(3, 5, 150, 160), Box(20, 30, 224, 100), Box(0, 0, 17, 23)]
SHRUNK = [Box(10, 20, 300, 320), Box(0, 0, 427, 640), Box(50, 60, 260, 130), Box(1, 2, 240, 400)]


@pytest.mark.parametrize("box", ENLARGED)
def test_bilinear_enlarging_is_torchvisions(photos: list[Image], box: Box) -> None:
    for photo in photos:
        made = crop_resize(photo, box, height=224, width=224)
        assert np.abs(made - reference_crop(photo, box, 224, 224, "bilinear")).max() <= 1.0


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [224, 96, 32, 20])
def test_resizing_is_close_to_torchvisions_antialiased_one(
    photos: list[Image], size: int, interpolation: Interpolation
) -> None:
    for photo in photos:
        for box in ENLARGED + SHRUNK:
            made = crop_resize(photo, box, height=size, width=size, interpolation=interpolation)
            difference = np.abs(made - reference_crop(photo, box, size, size, interpolation))
            assert made.shape == (size, size, 3)
            assert difference.mean() <= 2.0
            assert np.percentile(difference, 99) <= 12


@pytest.mark.parametrize("size", [224, 96, 32])
@pytest.mark.parametrize("box", [SHRUNK[0], SHRUNK[1]])
def test_shrinking_is_much_closer_than_opencvs_interpolation_alone(photos: list[Image], box: Box, size: int) -> None:
    cases: list[tuple[Interpolation, int]] = [("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)]
    for interpolation, flag in cases:
        expected = reference_crop(photos[0], box, size, size, interpolation)
        made = crop_resize(photos[0], box, height=size, width=size, interpolation=interpolation)
        cut = photos[0][box.top : box.top + box.height, box.left : box.left + box.width]
        plain = cv2.resize(cut, (size, size), interpolation=flag)
        assert np.abs(made - expected).mean() <= 0.65 * np.abs(plain - expected).mean()


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_bilinear_shrinking_by_a_whole_number_is_torchvisions(photos: list[Image], ratio: int) -> None:
    box = Box(0, 0, 96 * ratio, 96 * ratio)
    for photo in photos:
        made = crop_resize(photo, box, height=96, width=96)
        inside = np.abs(made - reference_crop(photo, box, 96, 96, "bilinear"))[2:-2, 2:-2]
        assert inside.max() <= 1.5


def test_a_fine_pattern_is_averaged_and_not_sampled() -> None:
    stripes = np.zeros((90, 90, 3), np.uint8)
    stripes[:, ::2] = 255
    made = crop_resize(stripes, Box(0, 0, 90, 90), height=30, width=30)
    assert made[:, 2:-2].min() >= 100
    assert made[:, 2:-2].max() <= 155


def test_equal_sizes_are_copied(noise: Image) -> None:
    for interpolation in ("bilinear", "bicubic"):
        made = crop_resize(noise, Box(3, 4, 20, 30), height=20, width=30, interpolation=interpolation)
        assert (made == noise[3:23, 4:34]).all()
        assert not np.shares_memory(made, noise)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3000, 10), (2, 3)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_size_and_number_of_channels(shape: tuple[int, int], channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
    for interpolation in ("bilinear", "bicubic"):
        made = crop_resize(image, Box(0, 0, *shape), height=32, width=24, interpolation=interpolation)
        assert made.shape == (32, 24, channels)
    assert flip(made).shape == made.shape
    assert blur(made, sigma=1.0, kernel_size=9).shape == made.shape
    assert solarise(made).shape == made.shape


def test_float_images_are_resized_as_uint8_ones(photos: list[Image]) -> None:
    image = photos[0].astype(np.float32) / 255
    made = crop_resize(image, SHRUNK[0], height=96, width=96)
    assert made.dtype == np.float32
    assert np.abs(made * 255 - reference_crop(photos[0], SHRUNK[0], 96, 96, "bilinear")).mean() <= 0.7


def test_flip_is_exact(noise: Image) -> None:
    for image in (noise, noise[..., :1], noise.astype(np.float32)):
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


def test_solarise_is_torchvisions(noise: Image) -> None:
    whole = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    for image in (noise, whole):
        expected = functional.solarize(torch.from_numpy(image).permute(2, 0, 1), threshold=128)
        assert (solarise(image) == as_image(expected)).all()
    image = noise.astype(np.float32) / 255
    assert np.abs(solarise(image) - as_image(functional.solarize(as_tensor(image), threshold=0.5))).max() <= 1e-6


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
    crop_resize(noise, Box(0, 0, 40, 48), height=20, width=20)
    blur(noise, sigma=1.0, kernel_size=5)
    flip(noise)
    solarise(noise)
    pad_crop(noise, Box(-1, -1, 40, 48))
    assert (noise == before).all()
