"""One view: the distributions of its parameters, their independence, and its pixels as a function of them."""

from collections import Counter
from dataclasses import replace
from itertools import combinations
from math import sqrt
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from ssl_core import rng
from ssl_core.errors import UserError
from ssl_core.torchvision_operators import declare_missing
from ssl_core.views.color import ColorName
from ssl_core.views.image import Box
from ssl_core.views.view import NUM_DRAWS, Draw, ViewConfig, ViewParameters, draw, parameters_from, render

declare_missing()
from torchvision.transforms import RandomResizedCrop  # noqa: E402 (needs the declaration above)
from torchvision.transforms.v2 import functional  # noqa: E402 (needs the declaration above)

Image = np.ndarray[Any, Any]

SIMCLR = ViewConfig(
    size=224, jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grey=0.2, blur=0.5, solarise=0.3
)
EVERYTHING = replace(SIMCLR, flip=1.0, jitter=1.0, grey=0.0, blur=1.0, solarise=1.0)


def drawn(config: ViewConfig, count: int, *, height: int = 375, width: int = 500) -> list[ViewParameters]:
    numbers = rng.uniform(rng.key(0, "views", 0, np.arange(count), 0), NUM_DRAWS).tolist()
    return [parameters_from(config, one, height=height, width=width) for one in numbers]


def assert_share(hits: int, of: int, probability: float) -> None:
    """Four standard deviations of a binomial."""
    assert abs(hits - of * probability) <= 4 * sqrt(of * probability * (1 - probability)) + 1e-9


def same_distribution(values: Any, others: Any) -> bool:
    """The two-sample Kolmogorov-Smirnov test does not tell them apart."""
    return cast(Any, ks_2samp(values, others)).pvalue > 1e-3


def test_probabilities_are_those_of_the_config() -> None:
    parameters = drawn(SIMCLR, 4000)
    assert_share(sum(one.flip for one in parameters), 4000, 0.5)
    assert_share(sum(one.solarise for one in parameters), 4000, 0.3)
    assert_share(sum(one.sigma is not None for one in parameters), 4000, 0.5)
    names = [[name for name, _ in one.colors] for one in parameters]
    assert_share(sum("hue" in one for one in names), 4000, 0.8)
    assert_share(sum("grey" in one for one in names), 4000, 0.2)


def test_decisions_are_independent_of_each_other() -> None:
    made = [
        (one.flip, len(one.colors) > 1, ("grey", 1.0) in one.colors, one.sigma is not None, one.solarise)
        for one in drawn(SIMCLR, 4000)
    ]
    shares = [0.5, 0.8, 0.2, 0.5, 0.3]
    for i, j in combinations(range(5), 2):
        assert_share(sum(one[i] and one[j] for one in made), 4000, shares[i] * shares[j])


def test_amounts_are_independent_of_each_other() -> None:
    made = drawn(replace(EVERYTHING, scale=(0.1, 0.5)), 4000, height=2000, width=2000)
    numbers = [
        (
            *(amount for _, amount in sorted(one.colors)),
            one.sigma,
            one.box.height * one.box.width,
            one.box.top / (2001 - one.box.height),
            one.box.left / (2001 - one.box.width),
        )
        for one in made
    ]
    correlations = np.corrcoef(np.array(numbers, np.float64).T)
    assert np.abs(correlations - np.eye(8)).max() <= 4 / sqrt(4000)


def test_probabilities_0_and_1_are_never_and_always() -> None:
    never = replace(SIMCLR, flip=0.0, jitter=0.0, grey=0.0, blur=0.0, solarise=0.0)
    for one in drawn(never, 500):
        assert (one.flip, one.colors, one.sigma, one.solarise) == (False, (), None, False)
    for one in drawn(replace(EVERYTHING, grey=1.0), 500):
        assert one.flip
        assert one.solarise
        assert one.sigma is not None
        assert len(one.colors) == 5
        assert one.colors[-1][0] == "grey"


def test_strengths_are_uniform_in_torchvisions_ranges() -> None:
    amounts = [dict(one.colors) for one in drawn(EVERYTHING, 4000)]
    ranges: dict[ColorName, tuple[float, float]] = {
        "brightness": (0.2, 1.8),
        "contrast": (0.2, 1.8),
        "saturation": (0.2, 1.8),
        "hue": (-0.2, 0.2),
    }
    for name, (low, high) in ranges.items():
        values = np.array([one[name] for one in amounts])
        assert same_distribution(values, np.linspace(low, high, 4000))
        assert low <= values.min()
        assert values.max() <= high
    sigmas = [one.sigma for one in drawn(EVERYTHING, 4000)]
    assert same_distribution(sigmas, np.linspace(0.1, 2.0, 4000))


def test_a_strength_above_one_stops_at_factor_zero() -> None:
    values = [dict(one.colors)["brightness"] for one in drawn(replace(EVERYTHING, brightness=1.5), 1000)]
    assert 0 <= min(values) < 0.05
    assert 2.4 < max(values) <= 2.5


def test_a_strength_of_zero_leaves_the_operator_out() -> None:
    assert all(len(one.colors) == 3 for one in drawn(replace(EVERYTHING, hue=0.0), 20))


def test_jitter_comes_in_all_24_orders_equally_often() -> None:
    orders = Counter(tuple(name for name, _ in one.colors) for one in drawn(EVERYTHING, 4800))
    assert len(orders) == 24
    for count in orders.values():
        assert_share(count, 4800, 1 / 24)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (32, 32), (100, 260)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0), (0.05, 0.14)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(3000)]
    ours = [one.box for one in drawn(replace(SIMCLR, scale=scale), 3000, height=height, width=width)]
    for column in range(4):
        assert same_distribution([box[column] for box in ours], [box[column] for box in theirs])
    assert all(box.top >= 0 and box.top + box.height <= height for box in ours)
    assert all(box.left >= 0 and box.left + box.width <= width for box in ours)


def test_area_is_uniform_and_ratio_log_uniform_where_all_boxes_fit() -> None:
    boxes = [one.box for one in drawn(replace(SIMCLR, scale=(0.1, 0.5)), 4000, height=2000, width=2000)]
    areas = [box.height * box.width / 2000**2 for box in boxes]
    assert same_distribution(areas, np.linspace(0.1, 0.5, 4000))
    ratios = [np.log(box.width / box.height) for box in boxes]
    assert same_distribution(ratios, np.linspace(np.log(3 / 4), np.log(4 / 3), 4000))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (3000, 10), (10, 3000), (2, 2)])
def test_extreme_shapes_fall_back_to_torchvisions_central_box(height: int, width: int) -> None:
    config = replace(SIMCLR, scale=(0.9, 1.0))
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    expected = {tuple(RandomResizedCrop.get_params(image, [0.9, 1.0], [3 / 4, 4 / 3])) for _ in range(50)}
    ours = {tuple(one.box) for one in drawn(config, 50, height=height, width=width)}
    assert ours == expected
    pixels = np.full((height, width, 3), 200, np.uint8)
    for one in drawn(config, 3, height=height, width=width):
        assert render(pixels, config, one).shape == (224, 224, 3)


def test_the_fallback_is_never_empty() -> None:
    config = replace(SIMCLR, ratio=(0.1, 0.2), scale=(0.9, 1.0))
    assert drawn(config, 1, height=1, width=9)[0].box == Box(0, 4, 1, 1)


def test_switching_one_thing_off_moves_no_other_draw() -> None:
    everything = drawn(EVERYTHING, 50)
    for off in ("flip", "jitter", "blur", "solarise"):
        for one, other in zip(everything, drawn(replace(EVERYTHING, **{off: 0.0}), 50), strict=True):
            for name in ("box", "flip", "colors", "sigma", "solarise"):
                if name != {"jitter": "colors", "blur": "sigma"}.get(off, off):
                    assert getattr(one, name) == getattr(other, name)
    hueless = drawn(replace(EVERYTHING, hue=0.0), 50)
    for one, other in zip(everything, hueless, strict=True):
        assert tuple(step for step in one.colors if step[0] != "hue") == other.colors


def test_the_numbers_of_a_stream_keep_their_meaning() -> None:
    expected = ["FLIP", "JITTER", "JITTER_ORDER", "BRIGHTNESS", "CONTRAST", "SATURATION", "HUE", "GREY", "BLUR"]
    expected += ["BLUR_SIGMA", "SOLARISE", "CROP_TOP", "CROP_LEFT"]
    assert [getattr(Draw, name) for name in expected] == list(range(13))
    assert (Draw.CROP, NUM_DRAWS) == (16, 36)


def test_draw_is_parameters_from_the_keys_numbers() -> None:
    keys = rng.key(3, "views", 1, 2, np.arange(4))
    numbers = rng.uniform(keys, NUM_DRAWS).tolist()
    for key, one in zip(keys, numbers, strict=True):
        assert draw(SIMCLR, key, height=300, width=400) == parameters_from(SIMCLR, one, height=300, width=400)


@pytest.mark.parametrize("position", range(4))
def test_a_view_is_torchvisions_pipeline_at_the_same_parameters(photos: list[Image], position: int) -> None:
    photo = photos[position % 2]
    one = draw(EVERYTHING, rng.key(0, "views", 0, position, 0), height=photo.shape[0], width=photo.shape[1])
    tensor = torch.from_numpy(photo).permute(2, 0, 1).float() / 255
    tensor = functional.resized_crop(tensor, *one.box, [224, 224], antialias=True)
    tensor = functional.horizontal_flip(tensor)
    for name, amount in one.colors:
        tensor = getattr(functional, f"adjust_{name}")(tensor, amount)
    tensor = functional.gaussian_blur(tensor, [23, 23], [one.sigma or 0.0] * 2)
    tensor = functional.solarize(tensor, threshold=0.5)
    difference = np.abs(render(photo, EVERYTHING, one) - tensor.permute(1, 2, 0).numpy() * 255)
    assert difference.mean() <= 1.0


def test_the_input_is_left_alone(photos: list[Image]) -> None:
    before = photos[0].copy()
    for one in drawn(SIMCLR, 5, height=427, width=640):
        render(photos[0], SIMCLR, one)
    assert (photos[0] == before).all()


def test_padded_crops_shift_by_whole_pixels_in_all_directions(noise: Image) -> None:
    config = ViewConfig(size=32, crop="padded", padding=4, flip=0.0)
    image = noise[:32, :32]
    offsets = Counter[tuple[int, int]]()
    for one in drawn(config, 4000, height=32, width=32):
        top, left, height, width = one.box
        assert (height, width) == (32, 32)
        offsets[top, left] += 1
        made = render(image, config, one)
        inside = image[max(top, 0) : top + 32, max(left, 0) : left + 32]
        assert (made[max(-top, 0) : 32 - max(top, 0), max(-left, 0) : 32 - max(left, 0)] == inside).all()
    assert set(offsets) == {(top, left) for top in range(-4, 5) for left in range(-4, 5)}
    assert_share(offsets[0, 0], 4000, 1 / 81)


def test_padded_crops_of_other_sizes_come_from_the_resized_central_square(photos: list[Image]) -> None:
    config = ViewConfig(size=32, crop="padded", padding=0, flip=0.0)
    photo = photos[0]  # 427 × 640
    one = draw(config, 0, height=427, width=640)
    square = render(photo[:, 106:533], config, one)
    assert (render(photo, config, one) == square).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("padding", -1),
        ("flip", 1.5),
        ("jitter", -0.1),
        ("blur", 2.0),
        ("brightness", -0.4),
        ("hue", 0.6),
        ("scale", (0.5, 0.2)),
        ("scale", (0.2, 1.1)),
        ("ratio", (0.0, 1.0)),
        ("blur_sigma", (-1.0, 1.0)),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"views\.{field}=") as refusal:
        replace(SIMCLR, **{field: value})
    assert "\n" not in str(refusal.value)
