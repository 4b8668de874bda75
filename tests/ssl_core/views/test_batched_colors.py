"""Colours of many views at once: the numbers that the loader draws, torchvision's operators, and the loader's views."""

from typing import Any

import numpy as np
import pytest
import torch

from ssl_core import rng
from ssl_core.torchvision_operators import declare_missing
from ssl_core.views import RECIPES, CropRecipe, ViewConfig, recipe
from ssl_core.views.batched_colors import BatchedColors, ColorDraws, apply_colors, gaussian_blur, turn_hue
from ssl_core.views.view import JITTER_ORDERS, NUM_DRAWS, parameters_from

declare_missing()
from torchvision.transforms.v2 import functional  # noqa: E402 (needs the declaration above)

Image = np.ndarray[Any, Any]
SEED, EPOCH = 3, 2
EVERYTHING = ViewConfig(
    size=64, jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grey=0.3, blur=0.5, solarise=0.3
)
NAMES = ("brightness", "contrast", "saturation", "hue")


def numbers_of(count: int) -> Image:
    return rng.uniform(rng.key(0, "views", 0, np.arange(count), 0), NUM_DRAWS)


def draws_of(**changed: Any) -> ColorDraws:
    """Of one view that nothing is done to, but for what is said."""
    fields: dict[str, Any] = {
        "operators": np.array([[0, 1, 2, 3]]),
        "amounts": np.array([[1.0, 1.0, 1.0, 0.0]]),
        "grey": np.array([False]),
        "sigma": np.array([0.0]),
        "solarise": np.array([False]),
        "kernel_size": 7,
    }
    return ColorDraws(**fields | changed)


@pytest.mark.parametrize(
    "config", [EVERYTHING, ViewConfig(size=32), ViewConfig(size=32, jitter=1.0, contrast=0.4, blur=1.0), None]
)
def test_the_parameters_are_those_of_the_loader(config: ViewConfig | None) -> None:
    config = config or RECIPES["byol"].layout()["views"][1]
    numbers = numbers_of(500)
    draws = ColorDraws.of(config, numbers)
    for index, own in enumerate(numbers.tolist()):
        expected = parameters_from(config, own, height=100, width=100)
        steps = [
            (NAMES[operator], float(amount))
            for operator, amount in zip(draws.operators[index], draws.amounts[index], strict=True)
            if amount != (0 if NAMES[operator] == "hue" else 1)
        ]
        assert (*steps, *([("grey", 1.0)] if draws.grey[index] else [])) == expected.colors
        assert draws.sigma[index] == (expected.sigma or 0)
        assert bool(draws.solarise[index]) == expected.solarise


@pytest.mark.parametrize("seed", range(40))
def test_a_sequence_is_torchvisions_sequence_rounded_once(noise: Image, seed: int) -> None:
    random = np.random.default_rng(seed)
    order = np.array([NAMES.index(name) for name in JITTER_ORDERS[seed % 24]])
    amounts = np.where(order == 3, random.uniform(-0.5, 0.5), random.uniform(0.2, 1.8, 4))
    grey = np.array([seed % 4 == 0])
    (made,) = apply_colors(
        torch.from_numpy(noise)[None], draws_of(operators=order[None], amounts=amounts[None], grey=grey)
    ).numpy()

    image = torch.from_numpy(noise).permute(2, 0, 1).double() / 255
    for operator, amount in zip(order, amounts, strict=True):
        image = getattr(functional, f"adjust_{NAMES[operator]}")(image, float(amount))
    if grey[0]:
        image = functional.rgb_to_grayscale(image, num_output_channels=3)
    assert np.abs(made - image.permute(1, 2, 0).numpy() * 255).max() <= 0.51


def test_hue_is_torchvisions(noise: Image, photos: list[Image]) -> None:
    for pixels in (noise, *photos):
        image = torch.from_numpy(pixels).permute(2, 0, 1).double() / 255
        for turn in (-0.5, -0.31, -0.1, 0.0, 0.004, 0.17, 0.25, 0.5):
            (made,) = turn_hue(image[None], torch.tensor([turn % 1], dtype=torch.float64))
            torch.testing.assert_close(made, functional.adjust_hue(image, turn), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel_size", [1, 3, 9, 23])
def test_blur_is_torchvisions_with_a_deviation_for_each(noise: Image, kernel_size: int) -> None:
    images = torch.from_numpy(np.stack([noise, noise[::-1].copy()])).permute(0, 3, 1, 2).double()
    sigma = torch.tensor([0.1, 1.7], dtype=torch.float64)
    made = gaussian_blur(images, sigma, kernel_size=kernel_size)
    for one, image, deviation in zip(made, images, sigma.tolist(), strict=True):
        expected = functional.gaussian_blur(image, [kernel_size] * 2, [deviation] * 2)
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-6)


def test_a_grey_image_has_no_colour_but_brightness_and_contrast(noise: Image) -> None:
    grey = torch.from_numpy(noise[None, ..., :1].copy())
    amounts = np.array([[1.3, 0.6, 0.2, 0.4]])
    (made,) = apply_colors(grey, draws_of(amounts=amounts, grey=np.array([True]))).numpy()
    image = grey[0].permute(2, 0, 1).double() / 255
    image = functional.adjust_contrast(functional.adjust_brightness(image, 1.3), 0.6)
    assert np.abs(made - image.permute(1, 2, 0).numpy() * 255).max() <= 0.51


@pytest.mark.parametrize("name", ["simclr", "byol", "mae", "dino"])
def test_crops_then_colours_are_the_loaders_views(photos: list[Image], name: str) -> None:
    blur: dict[str, Any] = {"blur": 0.5} if name == "simclr" else {}
    whole = recipe(name, image_size=96, **blur)
    draws = np.array([[5, 0, 7], [1, 2, 40]])
    keys = rng.key(SEED, "views", EPOCH, draws[..., None], np.arange(whole.num_views))

    def batch(made: CropRecipe) -> dict[str, Image]:
        numbers = made.draw(keys)
        views = [[made(photos[(lane + i) % len(photos)], numbers[lane, i]) for i in range(3)] for lane in range(2)]
        return {
            group.name: np.stack([np.stack([one[g] for one in lane], 1) for lane in views])
            for g, group in enumerate(made.groups)
        }

    crops = {group: torch.from_numpy(pixels) for group, pixels in batch(whole.crops_only()).items()}
    before = {group: pixels.clone() for group, pixels in crops.items()}
    made = BatchedColors(whole.layout, seed=SEED)(crops, epoch=EPOCH, draws=draws)
    expected = batch(whole)
    assert made.keys() == expected.keys()
    for group, pixels in expected.items():
        assert made[group].shape == pixels.shape
        assert made[group].dtype == torch.uint8
        assert torch.equal(crops[group], before[group])
        distance = np.abs(made[group].numpy().astype(int) - pixels.astype(int))
        assert distance.max() <= 2
        assert distance.mean() <= 0.05


@pytest.mark.gpu
def test_a_gpu_makes_the_same_views(photos: list[Image]) -> None:
    pixels = torch.from_numpy(np.stack([photos[0][:96, :96]] * 200)).view(2, 1, 100, 96, 96, 3)
    colors, draws = BatchedColors({"views": (EVERYTHING,)}, seed=SEED), np.arange(200).reshape(2, 100)
    here = colors({"views": pixels}, epoch=0, draws=draws)["views"].int()
    there = colors({"views": pixels.cuda()}, epoch=0, draws=draws)["views"].cpu().int()
    assert (here - there).abs().max() <= 1  # sums in another order, then rounded
    assert (here != there).float().mean() < 1e-3


def test_pieces_of_a_batch_change_nothing(photos: list[Image], monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.from_numpy(np.stack([photos[0][:64, :64]] * 5))[None, None]
    colors = BatchedColors({"views": (EVERYTHING,)}, seed=SEED)
    whole = colors({"views": pixels}, epoch=0, draws=np.arange(5)[None])["views"]
    monkeypatch.setattr("ssl_core.views.batched_colors._PIECE_VALUES", 2 * pixels[0, 0, 0].numel())
    assert torch.equal(colors({"views": pixels}, epoch=0, draws=np.arange(5)[None])["views"], whole)
