"""Crop and resize against torchvision's antialiased one of floats."""

from typing import Any

import numpy as np
import pytest
import torch

from ssl_core.torchvision_operators import declare_missing
from ssl_core.views.image import Box, Interpolation
from ssl_core.views.resize import crop_resize

declare_missing()
from torchvision.transforms.v2 import InterpolationMode, functional  # noqa: E402 (needs the declaration above)

Image = np.ndarray[Any, Any]

ENLARGED = [Box(3, 5, 150, 160), Box(20, 30, 224, 100), Box(0, 0, 17, 23), Box(40, 50, 1, 1), Box(7, 600, 90, 2)]
SHRUNK = [Box(10, 20, 300, 320), Box(0, 0, 427, 640), Box(50, 60, 260, 130), Box(1, 2, 240, 400), Box(400, 0, 1, 640)]


def reference(image: Image, box: Box, height: int, width: int, interpolation: Interpolation) -> Image:
    """torchvision's, of floats: float32 [height, width, C] in levels of 255."""
    tensor = torch.from_numpy(image).permute(2, 0, 1).float()
    mode = InterpolationMode(interpolation)
    made = functional.resized_crop(tensor, *box, [height, width], mode, antialias=True)
    return made.permute(1, 2, 0).numpy().clip(0, 255)


@pytest.mark.parametrize(("interpolation", "tolerance"), [("bilinear", 1.01), ("bicubic", 0.52)])
@pytest.mark.parametrize("size", [224, 96, 32, 20, 1])
def test_resizing_is_torchvisions(
    photos: list[Image], size: int, interpolation: Interpolation, tolerance: float
) -> None:
    for photo in photos:
        for box in ENLARGED + SHRUNK:
            made = crop_resize(photo, box, height=size, width=size, interpolation=interpolation)
            assert made.shape == (size, size, 3)
            assert made.dtype == np.uint8
            error = np.abs(made - reference(photo, box, size, size, interpolation))
            few_terms = interpolation == "bilinear" and min(box.height, box.width) <= 3 * size
            assert error.max() <= (1.5 if few_terms else tolerance)
            assert error.mean() <= 0.4


@pytest.mark.parametrize("side", [30, 100, 224, 300, 450, 900])
def test_bilinear_is_near_where_neighbours_differ_most_and_exact_where_none_do(side: int) -> None:
    random = np.random.default_rng(0)
    box = Box(0, 0, side, side)
    for image in (random.integers(0, 256, (side, side, 3)), random.integers(0, 2, (side, side, 3)) * 255):
        error = crop_resize(image.astype(np.uint8), box, height=224, width=224) - reference(
            image.astype(np.uint8), box, 224, 224, "bilinear"
        )
        assert np.abs(error).max() <= 2
        assert np.abs(error).mean() <= 0.4
        assert abs(error.mean()) <= 0.1  # halves are rounded upwards
    for level in (0, 1, 77, 254, 255):
        assert (crop_resize(np.full((side, side, 1), level, np.uint8), box, height=224, width=224) == level).all()


def test_a_fine_pattern_is_averaged_and_not_sampled() -> None:
    stripes = np.zeros((90, 90, 3), np.uint8)
    stripes[:, ::2] = 255
    made = crop_resize(stripes, Box(0, 0, 90, 90), height=30, width=30)
    assert made[:, 2:-2].min() >= 100
    assert made[:, 2:-2].max() <= 155


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_equal_sizes_are_copied(noise: Image, interpolation: Interpolation) -> None:
    made = crop_resize(noise, Box(3, 4, 20, 30), height=20, width=30, interpolation=interpolation)
    assert (made == noise[3:23, 4:34]).all()
    assert not np.shares_memory(made, noise)


@pytest.mark.parametrize("box", [ENLARGED[0], SHRUNK[0], SHRUNK[3]])
def test_mirrored_is_flipped(photos: list[Image], box: Box) -> None:
    made = crop_resize(photos[0], box, height=96, width=70, mirrored=True)
    assert (made == crop_resize(photos[0], box, height=96, width=70)[:, ::-1]).all()


@pytest.mark.parametrize(("interpolation", "tolerance"), [("bilinear", 2.0), ("bicubic", 0.52)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3000, 10), (2, 3), (40, 48)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_noise_of_any_size_and_number_of_channels(
    shape: tuple[int, int], channels: int, interpolation: Interpolation, tolerance: float
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
    for height, width in ((32, 24), (1, 2), (64, 70)):
        made = crop_resize(image, Box(0, 0, *shape), height=height, width=width, interpolation=interpolation)
        expected = reference(image, Box(0, 0, *shape), height, width, interpolation)
        assert made.shape == (height, width, channels)
        assert np.abs(made - expected).max() <= tolerance


def test_an_image_need_not_be_contiguous_and_is_left_alone(noise: Image) -> None:
    before = noise.copy()
    every_other = noise[::2, ::-1]
    made = crop_resize(every_other, Box(1, 2, 15, 30), height=20, width=20)
    assert (made == crop_resize(every_other.copy(), Box(1, 2, 15, 30), height=20, width=20)).all()
    assert (noise == before).all()


@pytest.mark.parametrize("box", [Box(0, 5, 10, 10), Box(-1, 0, 5, 5), Box(0, -3, 10, 10), Box(8, 0, 3, 1)])
def test_a_box_outside_the_image_is_refused(box: Box) -> None:
    with pytest.raises(ValueError, match="does not lie in an image of 10 × 10 pixels"):
        crop_resize(np.zeros((10, 10, 3), np.uint8), box, height=4, width=4)
    with pytest.raises(ValueError, match="uint8"):
        crop_resize(np.zeros((10, 10, 3), np.float32), Box(0, 0, 4, 4), height=4, width=4)
