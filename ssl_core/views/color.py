"""Colour operators on one RGB image, for given amounts: brightness, contrast, saturation, hue, grey.

Each equals `torchvision.transforms.v2.functional` on float tensors (`adjust_brightness`, `adjust_contrast`,
`adjust_saturation`, `adjust_hue`, `rgb_to_grayscale`), and a sequence of them equals the sequence there, rounded once,
at the end.

The speed comes from touching memory once: a block of pixels is split into float planes that stay in the processor's
nearest cache, goes through all operators there, and is written. Contrast alone needs to know the whole image: the mean
luma of what the operators before it make. They are applied once more for it, which costs no more than keeping that.

Images are uint8 [H, W, C]. Only RGB (C = 3) has colour: for other C saturation, hue and grey are the identity (as in
torchvision for C = 1), brightness is as for RGB, and contrast is about the mean of all channels.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ssl_core.views.compiled import compiled, kept
from ssl_core.views.image import Image

ColorName = Literal["brightness", "contrast", "saturation", "hue", "grey"]
ColorStep = tuple[ColorName, float]
"""An operator and its amount: a factor, for hue a part of a turn in [-0.5, 0.5]; grey reads none."""

LUMA_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601-2, to the digits torchvision uses
WHITE = 255.0

_RED, _GREEN, _BLUE = (np.float32(weight) for weight in LUMA_WEIGHTS)
_BLOCK = 512  # pixels; three planes of them are 6 KiB
_SCALE, _MIX, _TURN = 0, 1, 2  # kinds of operator, see `_apply`


def adjust_colors(image: Image, steps: Sequence[ColorStep]) -> Image:
    """Apply colour operators in the order given.

    Args:
        image: uint8 [H, W, C]; not changed.
        steps: operators and amounts.

    Returns:
        The new image, of the same shape and type (`image` itself where no step applies to it).
    """
    if image.shape[2] != 3:
        return _adjust_levels(image, [step for step in steps if step[0] in ("brightness", "contrast")])
    if not steps:
        return image
    pixels = image.reshape(-1)
    program = np.zeros((len(steps), 3), np.float32)
    for place, (name, amount) in enumerate(steps):
        match name:
            case "brightness":
                program[place] = _SCALE, amount, 0
            case "contrast":
                program[place] = _SCALE, amount, (1 - amount) * _mean_luma(pixels, program[:place])
            case "saturation":
                program[place] = _MIX, amount, 1 - amount
            case "hue":
                program[place] = _TURN, amount % 1 * 6, 0
            case "grey":
                program[place] = _MIX, 0, 1
    adjusted = np.empty_like(pixels)
    _adjust(pixels, program, adjusted)
    return adjusted.reshape(image.shape)


def adjust_brightness(image: Image, factor: float) -> Image:
    """factor · x."""
    return adjust_colors(image, [("brightness", factor)])


def adjust_contrast(image: Image, factor: float) -> Image:
    """factor · x + (1 − factor) · mean luma of the image."""
    return adjust_colors(image, [("contrast", factor)])


def adjust_saturation(image: Image, factor: float) -> Image:
    """factor · x + (1 − factor) · luma of the pixel."""
    return adjust_colors(image, [("saturation", factor)])


def adjust_hue(image: Image, turns: float) -> Image:
    """Turn the hue of every pixel by `turns` of a full circle in the HSV hexcone; value and saturation stay."""
    return adjust_colors(image, [("hue", turns)])


def to_grey(image: Image) -> Image:
    """The luma of each pixel in all three channels."""
    return adjust_colors(image, [("grey", 1.0)])


def _adjust_levels(image: Image, steps: Sequence[ColorStep]) -> Image:
    """Brightness and contrast of an image without colour."""
    if not steps:
        return image
    levels = image.astype(np.float32)
    for name, amount in steps:
        offset = (1 - amount) * levels.mean(dtype=np.float64) if name == "contrast" else 0.0
        levels = np.clip(amount * levels + np.float32(offset), 0, np.float32(WHITE))
    return np.rint(levels).astype(np.uint8)


@kept
def _adjust(pixels: Image, program: Image, adjusted: Image) -> None:
    """Write what a program makes of uint8 [3·N] to uint8 [3·N]."""
    planes = np.empty((3, _BLOCK), np.float32)
    for start in range(0, len(pixels), 3 * _BLOCK):
        r, g, b = _block(pixels, start, program, planes)
        _merge(r, g, b, adjusted[start : start + 3 * _BLOCK])


@kept
def _mean_luma(pixels: Image, program: Image) -> float:
    """Mean luma of what a program makes of uint8 [3·N]."""
    planes = np.empty((3, _BLOCK), np.float32)
    total = 0.0
    for start in range(0, len(pixels), 3 * _BLOCK):
        r, g, b = _block(pixels, start, program, planes)
        total += _sum_luma(r, g, b)
    return total / (len(pixels) // 3)


@compiled
def _block(pixels: Image, start: int, program: Image, planes: Image) -> tuple[Image, Image, Image]:
    """What a program makes of the block that starts there: planes of float32 [n ≤ _BLOCK]."""
    block = pixels[start : start + 3 * _BLOCK]
    count = len(block) // 3
    r, g, b = planes[0, :count], planes[1, :count], planes[2, :count]
    _split(block, r, g, b)
    _apply(program, r, g, b)
    return r, g, b


@compiled
def _apply(program: Image, r: Image, g: Image, b: Image) -> None:
    """Apply operators to float32 [n] planes, in place.

    Args:
        program: float32 [operators, 3]: `_SCALE`, gain, offset; or `_MIX`, gain, luma; or `_TURN`, sixths of a circle.
    """
    for place in range(len(program)):
        kind, amount, other = program[place, 0], program[place, 1], program[place, 2]
        if kind == _SCALE:
            _scale(r, amount, other)
            _scale(g, amount, other)
            _scale(b, amount, other)
        elif kind == _MIX:
            _mix(r, g, b, amount, other)
        else:
            _turn(r, g, b, amount)


@compiled
def _scale(levels: Image, gain: np.float32, offset: np.float32) -> None:
    """gain · x + offset, within [0, white]."""
    for i in range(len(levels)):
        levels[i] = min(max(gain * levels[i] + offset, np.float32(0)), np.float32(WHITE))


@compiled
def _mix(r: Image, g: Image, b: Image, gain: np.float32, luma: np.float32) -> None:
    """gain · x + luma · L(x), within [0, white]."""
    for i in range(len(r)):
        grey = luma * (_RED * r[i] + _GREEN * g[i] + _BLUE * b[i])
        r[i] = min(max(gain * r[i] + grey, np.float32(0)), np.float32(WHITE))
        g[i] = min(max(gain * g[i] + grey, np.float32(0)), np.float32(WHITE))
        b[i] = min(max(gain * b[i] + grey, np.float32(0)), np.float32(WHITE))


@compiled
def _turn(r: Image, g: Image, b: Image, sixths: np.float32) -> None:
    """Turn the hue by 0 ≤ sixths < 6 of the hexcone.

    With d = max − min and the hue h in sixths multiplied by d there is nothing to divide by: the new channels are
    min + clip(|d·h − 3d| − d, 0, d), min + clip(2d − |d·h − 2d|, 0, d) and min + clip(2d − |d·h − 4d|, 0, d).
    """
    zero, two, three, four, six = np.float32(0), np.float32(2), np.float32(3), np.float32(4), np.float32(6)
    for i in range(len(r)):
        red, green, blue = r[i], g[i], b[i]
        most, least = max(red, max(green, blue)), min(red, min(green, blue))
        d = most - least
        hue = red - green + four * d
        hue = blue - red + two * d if green == most else hue
        hue = green - blue if red == most else hue  # −d … 5d
        hue += sixths * d
        circle = six * d
        hue = hue + circle if hue < zero else hue
        hue = hue - circle if hue >= circle else hue
        r[i] = least + min(max(abs(hue - three * d) - d, zero), d)
        g[i] = least + min(max(two * d - abs(hue - two * d), zero), d)
        b[i] = least + min(max(two * d - abs(hue - four * d), zero), d)


@compiled
def _split(pixels: Image, r: Image, g: Image, b: Image) -> None:
    """uint8 [3·n] to its planes."""
    for i in range(len(r)):
        r[i] = np.float32(pixels[3 * i])
        g[i] = np.float32(pixels[3 * i + 1])
        b[i] = np.float32(pixels[3 * i + 2])


@compiled
def _merge(r: Image, g: Image, b: Image, pixels: Image) -> None:
    """Planes to uint8 [3·n], rounded."""
    half: Any = np.float32(0.5)
    for i in range(len(r)):
        pixels[3 * i] = np.uint8(np.int32(r[i] + half))  # by way of int32, which processors convert to at once
        pixels[3 * i + 1] = np.uint8(np.int32(g[i] + half))
        pixels[3 * i + 2] = np.uint8(np.int32(b[i] + half))


@compiled
def _sum_luma(r: Image, g: Image, b: Image) -> float:
    """Sum of the luma of planes; `r` is lost. Halves are added to halves, which is exact to rounding and fast."""
    count = len(r)
    for i in range(count):
        r[i] = _RED * r[i] + _GREEN * g[i] + _BLUE * b[i]
    while count > 1:
        if count % 2:
            r[0] += r[count - 1]
        count //= 2
        for i in range(count):
            r[i] += r[count + i]
    return r[0]
