"""One view: its distribution, the parameters drawn from a key, and the pixels made from them.

Every parameter reads the number at a fixed index of its key's stream (`Draw`), whatever else is drawn or switched off,
so a new parameter moves none of the others; all are known before a pixel is touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from math import exp, floor, log, sqrt
from typing import Any, Literal, NamedTuple

import numpy as np

from ssl_core import rng
from ssl_core.errors import UserError
from ssl_core.views.color import ColorName, ColorStep, adjust_colors
from ssl_core.views.image import (
    Box,
    Image,
    Interpolation,
    blur,
    blur_kernel_size,
    flip,
    pad_crop,
    solarise,
)
from ssl_core.views.resize import crop_resize

CROP_TRIES = 10
JITTER_ORDERS: tuple[tuple[ColorName, ...], ...] = tuple(permutations(("brightness", "contrast", "saturation", "hue")))


class Draw:
    """Which number of a key's stream decides what. Add before `CROP`; never renumber.

    Plain integers: reading an enum's member takes longer than all else a parameter needs.
    """

    FLIP = 0
    JITTER = 1
    JITTER_ORDER = 2
    BRIGHTNESS = 3
    CONTRAST = 4
    SATURATION = 5
    HUE = 6
    GREY = 7
    BLUR = 8
    BLUR_SIGMA = 9
    SOLARISE = 10
    CROP_TOP = 11
    CROP_LEFT = 12
    CROP = 16  # then area and aspect ratio of each try in turn


NUM_DRAWS = Draw.CROP + 2 * CROP_TRIES


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """The distribution of one view. Probabilities are of applying the operator at all; strengths are torchvision's.

    Attributes:
        size: pixels of a side of the view.
        crop: "resized" takes a box of random area and aspect ratio and resizes it; "padded", for small images of the
            view's size, pads and cuts at a whole-pixel offset (other images: their central square, resized, comes
            first).
        scale: range of the box's share of the image's area.
        ratio: range of the box's width / height, drawn log-uniformly.
        interpolation: of the resize.
        padding: black pixels on each side, for "padded".
        flip: probability of a horizontal flip.
        jitter: probability of colour jitter: four operators in random order.
        brightness: factor is uniform in [max(0, 1 − strength), 1 + strength]; 0 switches the operator off.
        contrast: as brightness.
        saturation: as brightness.
        hue: turn is uniform in [−strength, strength], at most 0.5.
        grey: probability.
        blur: probability.
        blur_sigma: range of the standard deviation in pixels; the kernel spans a tenth of the view.
        solarise: probability.
    """

    size: int
    crop: Literal["resized", "padded"] = "resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    padding: int = 4
    flip: float = 0.5
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no view can be drawn from."""
        _check(self.size >= 1, f"size={self.size}: use a side of at least 1 pixel")
        _check(self.padding >= 0, f"padding={self.padding}: use 0 or more pixels")
        for name in ("flip", "jitter", "grey", "blur", "solarise"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"{name}={value}: a probability lies between 0 and 1")
        for name in ("brightness", "contrast", "saturation", "hue"):
            value = getattr(self, name)
            _check(value >= 0, f"{name}={value}: a strength is 0 or more")
        _check(self.hue <= 0.5, f"hue={self.hue}: half a turn either way, 0.5, is the whole circle")
        for name in ("scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            _check(0 < low <= high, f"{name}=[{low}, {high}]: give a range [low, high] with 0 < low ≤ high")
        _check(self.scale[1] <= 1, f"scale=[{self.scale[0]}, {self.scale[1]}]: a box is at most the whole image, 1.0")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(f"views.{message}")


class ViewParameters(NamedTuple):
    """What is done to an image to make one view.

    Attributes:
        box: of the image for a "resized" crop; of its square of the view's size for a "padded" one, where it may reach
            over the edges.
        flip: whether left and right are mirrored.
        colors: colour operators with their amounts, in order.
        sigma: standard deviation of the blur in pixels, None for none.
        solarise: whether the view is solarised.
    """

    box: Box
    flip: bool
    colors: tuple[ColorStep, ...]
    sigma: float | None
    solarise: bool


def draw(config: ViewConfig, key: Any, *, height: int, width: int) -> ViewParameters:
    """Draw the parameters of one view.

    Args:
        config: the view's distribution.
        key: int64 scalar, `rng.key(seed, "views", epoch, position, view)`.
        height: rows of the image.
        width: columns of the image.
    """
    return parameters_from(config, rng.uniform(np.int64(key), NUM_DRAWS).tolist(), height=height, width=width)


def parameters_from(config: ViewConfig, numbers: Sequence[float], *, height: int, width: int) -> ViewParameters:
    """The parameters that a key's first `NUM_DRAWS` uniform numbers stand for (drawn for all views at once)."""
    sigma = between(config.blur_sigma, numbers[Draw.BLUR_SIGMA]) if numbers[Draw.BLUR] < config.blur else None
    box = _resized_box if config.crop == "resized" else _padded_box
    return ViewParameters(
        box=box(config, numbers, height, width),
        flip=numbers[Draw.FLIP] < config.flip,
        colors=_color_steps(config, numbers),
        sigma=sigma,
        solarise=numbers[Draw.SOLARISE] < config.solarise,
    )


def render(image: Image, config: ViewConfig, parameters: ViewParameters) -> Image:
    """Make the view: crop, flip, colours, blur, solarise, in the order of SimCLR and BYOL.

    Args:
        image: uint8 [H, W, C].
        config: the view's distribution; only its size, kind of crop and interpolation are read.
        parameters: drawn for an image of this height and width.

    Returns:
        uint8 [size, size, C].
    """
    view = _cropped(image, config, parameters.box, mirrored=parameters.flip)
    view = adjust_colors(view, parameters.colors)
    if parameters.sigma is not None:
        view = blur(view, sigma=parameters.sigma, kernel_size=blur_kernel_size(config.size))
    return solarise(view) if parameters.solarise else view


def between(bounds: tuple[float, float], number: Any) -> Any:
    """Where numbers in [0, 1) lie between two bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * number


def _color_steps(config: ViewConfig, numbers: Sequence[float]) -> tuple[ColorStep, ...]:
    steps: list[ColorStep] = []
    if numbers[Draw.JITTER] < config.jitter:
        amounts = {
            "brightness": _factor(config.brightness, numbers[Draw.BRIGHTNESS]),
            "contrast": _factor(config.contrast, numbers[Draw.CONTRAST]),
            "saturation": _factor(config.saturation, numbers[Draw.SATURATION]),
            "hue": between((-config.hue, config.hue), numbers[Draw.HUE]) if config.hue else None,
        }
        order = JITTER_ORDERS[int(numbers[Draw.JITTER_ORDER] * len(JITTER_ORDERS))]
        steps = [(name, amount) for name in order if (amount := amounts[name]) is not None]
    if numbers[Draw.GREY] < config.grey:
        steps.append(("grey", 1.0))
    return tuple(steps)


def _factor(strength: float, number: float) -> float | None:
    return between(strength_range(strength), number) if strength else None


def strength_range(strength: float) -> tuple[float, float]:
    """From where to where a factor of brightness, contrast or saturation is drawn."""
    return max(0.0, 1.0 - strength), 1.0 + strength


def _resized_box(config: ViewConfig, numbers: Sequence[float], height: int, width: int) -> Box:
    """torchvision's `RandomResizedCrop.get_params`: ten tries, then the largest central box of allowed ratio."""
    log_ratio = (log(config.ratio[0]), log(config.ratio[1]))
    for i in range(Draw.CROP, NUM_DRAWS, 2):
        area = height * width * between(config.scale, numbers[i])
        ratio = exp(between(log_ratio, numbers[i + 1]))
        w, h = round(sqrt(area * ratio)), round(sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = numbers[Draw.CROP_TOP] * (height - h + 1), numbers[Draw.CROP_LEFT] * (width - w + 1)
            return Box(floor(top), floor(left), h, w)
    low, high = config.ratio
    h = min(height, max(1, round(width / low))) if width / height < low else height
    w = min(width, max(1, round(height * high))) if width / height > high else width
    return Box((height - h) // 2, (width - w) // 2, h, w)


def _padded_box(config: ViewConfig, numbers: Sequence[float], height: int, width: int) -> Box:
    """torchvision's `RandomCrop(size, padding=padding)`."""
    offsets = 2 * config.padding + 1
    top, left = floor(numbers[Draw.CROP_TOP] * offsets), floor(numbers[Draw.CROP_LEFT] * offsets)
    return Box(top - config.padding, left - config.padding, config.size, config.size)


def _cropped(image: Image, config: ViewConfig, box: Box, *, mirrored: bool) -> Image:
    size = config.size
    resize = partial(crop_resize, height=size, width=size, interpolation=config.interpolation)
    if config.crop == "resized":
        return resize(image, box, mirrored=mirrored)
    height, width = image.shape[:2]
    if (height, width) != (size, size):
        side = min(height, width)
        image = resize(image, Box((height - side) // 2, (width - side) // 2, side, side))
    view = pad_crop(image, box)
    return flip(view) if mirrored else view
