"""The colour operators against torchvision's on float tensors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core.torchvision_operators import declare_missing
from ssl_core.views.color import (
    ColorName,
    ColorStep,
    adjust_brightness,
    adjust_colors,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    to_grey,
)

declare_missing()
from torchvision.transforms.v2 import functional  # noqa: E402 (needs the declaration above)

Image = np.ndarray[Any, Any]

REFERENCE: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "brightness": functional.adjust_brightness,
    "contrast": functional.adjust_contrast,
    "saturation": functional.adjust_saturation,
    "hue": functional.adjust_hue,
    "grey": lambda image, _: functional.rgb_to_grayscale(image, num_output_channels=3),
}
OURS: dict[str, Callable[[Image, float], Image]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
    "grey": lambda image, _: to_grey(image),
}


def reference(image: Image, steps: list[ColorStep]) -> Image:
    """torchvision's result in levels of 255, not rounded: float64 [H, W, C]."""
    tensor = torch.from_numpy(image).permute(2, 0, 1).double() / 255
    for name, amount in steps:
        tensor = REFERENCE[name](tensor, amount)
    return tensor.permute(1, 2, 0).numpy() * 255


def random_steps(seed: int) -> list[ColorStep]:
    """A jitter of SimCLR's strength in random order, sometimes with grey."""
    random = np.random.default_rng(seed)
    steps: list[ColorStep] = [
        ("brightness", random.uniform(0.2, 1.8)),
        ("contrast", random.uniform(0.2, 1.8)),
        ("saturation", random.uniform(0.2, 1.8)),
        ("hue", random.uniform(-0.2, 0.2)),
    ]
    steps = [steps[i] for i in random.permutation(4)]
    return [*steps, ("grey", 1.0)] if seed % 4 == 0 else steps


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.0, 0.2, 0.63, 1.0, 1.37, 1.8, 3.0])
def test_factors_are_torchvisions_within_rounding(
    noise: Image, photos: list[Image], name: ColorName, factor: float
) -> None:
    for image in (noise, *photos):
        assert np.abs(OURS[name](image, factor) - reference(image, [(name, factor)])).max() <= 0.51


@pytest.mark.parametrize("turns", [-0.5, -0.31, -0.1, 0.0, 0.004, 0.17, 0.25, 0.5])
def test_hue_is_torchvisions_within_rounding(noise: Image, photos: list[Image], turns: float) -> None:
    for image in (noise, *photos):
        assert np.abs(adjust_hue(image, turns) - reference(image, [("hue", turns)])).max() <= 0.51


def test_grey_is_torchvisions_within_rounding(noise: Image, photos: list[Image]) -> None:
    for image in (noise, *photos):
        grey = to_grey(image)
        assert np.abs(grey - reference(image, [("grey", 1.0)])).max() <= 0.51
        assert (grey[..., 0] == grey[..., 1]).all()
        assert (grey[..., 0] == grey[..., 2]).all()


@pytest.mark.parametrize("seed", range(60))
def test_a_sequence_is_torchvisions_sequence_rounded_once(noise: Image, seed: int) -> None:
    steps = random_steps(seed)
    assert np.abs(adjust_colors(noise, steps) - reference(noise, steps)).max() <= 0.51


def test_consecutive_factors_below_one_do_not_hide_a_clamp_before_them(noise: Image) -> None:
    steps: list[ColorStep] = [("brightness", 1.8), ("brightness", 0.5), ("contrast", 0.7), ("saturation", 0.4)]
    assert np.abs(adjust_colors(noise, steps) - reference(noise, steps)).max() <= 0.51


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7, 3), (5, 1, 3), (1, 1, 1), (3, 500, 1)])
def test_any_size_keeps_shape_and_type(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    made = adjust_colors(image, random_steps(3))
    assert made.shape == shape
    assert made.dtype == np.uint8


def test_one_channel_is_torchvisions_grey_image(noise: Image) -> None:
    image = noise[..., :1].copy()
    steps = random_steps(5)
    assert np.abs(adjust_colors(image, steps) - reference(image, steps)).max() <= 0.51
    only_for_rgb: list[ColorStep] = [("saturation", 0.3), ("hue", 0.2), ("grey", 1.0)]
    assert adjust_colors(image, only_for_rgb) is image


def test_four_channels_have_brightness_and_contrast_only() -> None:
    image = np.random.default_rng(2).integers(0, 256, (9, 8, 4), dtype=np.uint8)
    expected = np.clip(0.5 * (1.5 * image).clip(0, 255) + 0.5 * (1.5 * image).clip(0, 255).mean(), 0, 255)
    made = adjust_colors(
        image, [("saturation", 0.2), ("brightness", 1.5), ("hue", 0.3), ("contrast", 0.5), ("grey", 1)]
    )
    assert np.abs(made - expected).max() <= 0.51


def test_the_input_is_left_alone(noise: Image) -> None:
    for image in (noise, noise[..., :1].copy()):
        before = image.copy()
        adjust_colors(image, random_steps(7))
        assert (image == before).all()
