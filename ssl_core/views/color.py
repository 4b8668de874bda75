"""Colour operators on one RGB image, for given amounts: brightness, contrast, saturation, hue, grey.

Each equals `torchvision.transforms.v2.functional` on float tensors (`adjust_brightness`, `adjust_contrast`,
`adjust_saturation`, `adjust_hue`, `rgb_to_grayscale`), and a sequence of them equals the sequence there: within 1e-5
of white for float32 images, within one level for uint8 images, which are rounded once, at the end.

The speed comes from what can be left out without changing a result. All operators but hue are maps
x → gain·x + luma·L(x) + offset with the same three numbers in every channel, where L is a pixel's luma. Such maps
compose to such maps, so consecutive operators cost one pass over the pixels. torchvision clamps to [0, white] after
each; an amount of at most 1 only mixes values that lie in that range, so a clamp is needed, and made, after amounts
above 1 alone.

Images are uint8 in [0, 255] or float32 in [0, 1], [H, W, C]. Only RGB (C = 3) has colour: for other C saturation, hue
and grey are the identity (as in torchvision for C = 1), brightness is as for RGB, and contrast is about the mean of
all channels.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from ssl_core.views.image import Image, shaped

ColorName = Literal["brightness", "contrast", "saturation", "hue", "grey"]
ColorStep = tuple[ColorName, float]
"""An operator and its amount: a factor, for hue a part of a turn in [-0.5, 0.5]; grey reads none."""

LUMA_WEIGHTS = (0.2989, 0.587, 0.114)  # ITU-R 601-2, to the digits torchvision uses
_NEEDS_RGB = ("saturation", "hue", "grey")


def adjust_colors(image: Image, steps: Sequence[ColorStep]) -> Image:
    """Apply colour operators in the order given.

    Args:
        image: uint8 or float32 [H, W, C]; not changed.
        steps: operators and amounts.

    Returns:
        The new image, of the same shape and type (`image` itself where no step applies to it).
    """
    if image.shape[2] != 3:
        steps = [step for step in steps if step[0] not in _NEEDS_RGB]
    if not steps:
        return image
    canvas = _Canvas(image)
    for name, amount in steps:
        if name == "hue":
            canvas.rotate_hue(amount)
        elif name == "brightness":
            canvas.apply(_ColorMap(amount, 0.0, 0.0))
        elif name == "contrast":
            canvas.apply(_ColorMap(amount, 0.0, (1.0 - amount) * canvas.mean_luma()))
        elif name == "saturation":
            canvas.apply(_ColorMap(amount, 1.0 - amount, 0.0))
        else:
            canvas.apply(_ColorMap(0.0, 1.0, 0.0))
        if amount > 1:
            canvas.clamp()
    canvas.settle()
    if image.dtype == np.uint8:
        return shaped(cv2.convertScaleAbs(canvas.pixels), image.shape)  # rounds and saturates; nothing is negative here
    return np.clip(canvas.pixels, 0.0, 1.0)


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


class _ColorMap(NamedTuple):
    """x → gain·x + luma·L(x) + offset, in every channel alike.

    L is linear; that L(1) is 0.9999 (torchvision's weights) and here taken as 1 moves no result by 0.03 levels.
    """

    gain: float
    luma: float
    offset: float

    def after(self, first: "_ColorMap") -> "_ColorMap":
        """The map that applies `first`, then this one."""
        both = self.gain + self.luma
        return _ColorMap(
            self.gain * first.gain,
            self.gain * first.luma + self.luma * (first.gain + first.luma),
            both * first.offset + self.offset,
        )


class _Canvas:
    """float32 pixels that are painted over, in two buffers, and the map that is still to be applied to them."""

    def __init__(self, image: Image) -> None:
        self.pixels: Image = image.astype(np.float32)
        self._spare = np.empty_like(self.pixels)
        self._pending: _ColorMap | None = None
        self._white = 255.0 if image.dtype == np.uint8 else 1.0

    def apply(self, color_map: _ColorMap) -> None:
        """Apply a map, some time before the pixels are next read."""
        self._pending = color_map if self._pending is None else color_map.after(self._pending)

    def mean_luma(self) -> float:
        """Mean luma of what the pixels will be; the mean of all channels where these are not three."""
        if self.pixels.shape[2] == 3:
            red, green, blue, _ = cv2.mean(self.pixels)
            mean = LUMA_WEIGHTS[0] * red + LUMA_WEIGHTS[1] * green + LUMA_WEIGHTS[2] * blue
        else:
            mean = float(self.pixels.mean(dtype=np.float64))
        if self._pending is None:
            return mean
        gain, luma, offset = self._pending
        return (gain + luma) * mean + offset

    def settle(self) -> None:
        """Apply the pending map to the pixels."""
        if self._pending is None:
            return
        gain, luma, offset = self._pending
        self._pending = None
        if self.pixels.shape[2] != 3:
            self.pixels *= np.float32(gain)
            self.pixels += np.float32(offset)
            return
        red, green, blue = luma * LUMA_WEIGHTS[0], luma * LUMA_WEIGHTS[1], luma * LUMA_WEIGHTS[2]
        matrix = [
            [gain + red, green, blue, offset],
            [red, gain + green, blue, offset],
            [red, green, gain + blue, offset],
        ]
        cv2.transform(self.pixels, np.array(matrix, np.float32), dst=self._spare)
        self.pixels, self._spare = self._spare, self.pixels

    def clamp(self) -> None:
        """Settle, then limit the pixels to [0, white], in place."""
        self.settle()
        cv2.threshold(self.pixels, self._white, 0, cv2.THRESH_TRUNC, dst=self.pixels)
        cv2.threshold(self.pixels, 0, 0, cv2.THRESH_TOZERO, dst=self.pixels)

    def rotate_hue(self, turns: float) -> None:
        """Settle, then turn the hue; OpenCV's float hue is in degrees and may exceed a full circle on the way back."""
        self.settle()
        cv2.cvtColor(self.pixels, cv2.COLOR_RGB2HSV, dst=self._spare)
        turn: Any = (turns % 1.0 * 360.0, 0.0, 0.0, 0.0)  # OpenCV's types know arrays alone
        cv2.add(self._spare, turn, dst=self._spare)
        cv2.cvtColor(self._spare, cv2.COLOR_HSV2RGB, dst=self.pixels)
