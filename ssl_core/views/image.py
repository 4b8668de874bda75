"""Geometry and filters on one image, for given parameters: crop and resize, padded crop, flip, blur, solarise.

Images are uint8 in [0, 255] or float32 in [0, 1], [H, W, C] with C ≤ 4 (OpenCV's limit). Every operator
returns an array of the input's type and leaves its input alone. The references are torchvision's functions of float
tensors:

* **Resize** is `resize(..., antialias=True)`. OpenCV's linear and cubic interpolation read 2 or 4 pixels a side however
  much is left out between them, so a small separable filter precedes `INTER_LINEAR` and `INTER_CUBIC` along each side
  that shrinks. Distance from torchvision over SimCLR's random boxes, bilinear, mean and 99th percentile in levels of
  255: photos of 500 × 375 to 224 px 0.64 and 4.0 (`INTER_LINEAR` alone 1.2 and 9.2), to 96 px 0.49 and 2.5 (4.8 and
  32), to 32 px 0.40 and 2.0 (10 and 61); rounding makes 0.25. Enlarging is the same formula for bilinear; for bicubic
  it differs by 0.7 (photos) to 1.1 (32 px images), because OpenCV's kernel has a = −0.75 and torchvision's a = −0.5.
* **Blur** is `gaussian_blur` with the same kernel size within 0.6 level; it leaves out taps beyond 3.5 standard
  deviations.
* **Flip** and **solarise** are exact.
"""

from functools import lru_cache
from math import ceil
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from cv2.typing import MatLike

Image = np.ndarray[Any, np.dtype[Any]]
Interpolation = Literal["bilinear", "bicubic"]

_OPENCV_INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_MAX_FILTERED_RATIO = 8.0  # beyond it pixels are first averaged in blocks: a filter's cost grows with the ratio


class Box(NamedTuple):
    """Rows top … top + height − 1 and columns left … left + width − 1 of an image."""

    top: int
    left: int
    height: int
    width: int


def crop_resize(image: Image, box: Box, *, height: int, width: int, interpolation: Interpolation = "bilinear") -> Image:
    """Cut a box out of an image and resize it, antialiased along each side that shrinks.

    Args:
        image: uint8 or float32 [H, W, C].
        box: what to cut, at least one pixel; it lies inside the image.
        height: rows of the result.
        width: columns of the result.
        interpolation: the kernel, as torchvision names it.

    Returns:
        [height, width, C].
    """
    cut = image[box.top : box.top + box.height, box.left : box.left + box.width]
    if box.height > height or box.width > width:
        cut = _antialiased(cut, height, width, interpolation)
    resized = cv2.resize(cut, (width, height), interpolation=_OPENCV_INTERPOLATION[interpolation])
    return shaped(resized, (height, width, image.shape[2]))


def pad_crop(image: Image, box: Box) -> Image:
    """Cut a box that may reach over the image's edges; what lies outside is 0.

    Args:
        image: [H, W, C].
        box: top and left may be negative.

    Returns:
        [box.height, box.width, C].
    """
    result = np.zeros((box.height, box.width, image.shape[2]), image.dtype)
    top, left = max(box.top, 0), max(box.left, 0)
    inside = image[top : max(box.top + box.height, 0), left : max(box.left + box.width, 0)]
    result[top - box.top :, left - box.left :][: inside.shape[0], : inside.shape[1]] = inside
    return result


def flip(image: Image) -> Image:
    """Mirror left and right."""
    return shaped(cv2.flip(image, 1), image.shape)


def blur(image: Image, *, sigma: float, kernel_size: int) -> Image:
    """Gaussian blur.

    Args:
        image: uint8 or float32 [H, W, C].
        sigma: standard deviation in pixels.
        kernel_size: taps, odd; 1 leaves the image as it is. Edges are mirrored without repeating the outermost pixel.
    """
    radius = min(kernel_size // 2, ceil(3.5 * sigma))
    if radius == 0:
        return image
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    return shaped(cv2.sepFilter2D(image, -1, weights, weights), image.shape)


def blur_kernel_size(image_size: int) -> int:
    """SimCLR's kernel: a tenth of the image's height, made odd (arXiv 2002.05709, appendix A; 224 → 23, 32 → 3)."""
    return image_size // 10 // 2 * 2 + 1


def solarise(image: Image) -> Image:
    """Invert what is brighter than half of white: torchvision's `solarize` at 128 (uint8) or 0.5 (float32)."""
    white = image.dtype.type(255 if image.dtype == np.uint8 else 1)
    return np.minimum(image, white - image)


def shaped(pixels: MatLike, shape: tuple[int, ...]) -> Image:
    """OpenCV's result with the channel axis that it drops from one-channel images."""
    return np.asarray(pixels).reshape(shape)


def _antialiased(cut: Image, height: int, width: int, interpolation: Interpolation) -> MatLike:
    """Prepare an image that shrinks to height × width: average whole blocks of pixels first, then filter."""
    rows, columns = cut.shape[:2]
    block_rows, block_columns = _block(rows / height), _block(columns / width)
    if block_rows > 1 or block_columns > 1:
        rows, columns = round(rows / block_rows), round(columns / block_columns)
        cut = cv2.resize(cut, (columns, rows), interpolation=cv2.INTER_AREA)
    filter_y, filter_x = (_shrinking_filter(ratio, interpolation) for ratio in (rows / height, columns / width))
    return cv2.sepFilter2D(cut, -1, filter_x, filter_y)


def _block(ratio: float) -> int:
    """How many pixels to average before filtering, so that the ratio left is between 4 and `_MAX_FILTERED_RATIO`."""
    return int(ratio // 4) if ratio > _MAX_FILTERED_RATIO else 1


@lru_cache(maxsize=4096)
def _shrinking_filter(ratio: float, interpolation: Interpolation) -> Image:
    """The filter that turns plain interpolation into antialiased interpolation at source / target = `ratio`.

    Antialiasing stretches the interpolation kernel by the ratio. A stretched triangle is the plain one convolved with
    its own samples wherever the ratio is a whole number; between 1 and 2 three taps are chosen to give it the right
    second moment, ratio² / 6. Cubic interpolation has no second moment to correct, so the stretched kernel's samples
    serve at every ratio above 1.

    Returns:
        float32 [odd number of taps, at least 3], of sum 1; no change where nothing shrinks.
    """
    if ratio <= 1:
        return np.array([0, 1, 0], np.float32)
    if interpolation == "bilinear" and ratio <= 2:
        side = (ratio * ratio - 1) / 12
        return np.array([side, 1 - 2 * side, side], np.float32)
    support = 1 if interpolation == "bilinear" else 2
    radius = max(ceil(support * ratio) - 1, 1)
    offsets = np.abs(np.arange(-radius, radius + 1)) / ratio
    taps = np.maximum(0, 1 - offsets) if interpolation == "bilinear" else _cubic(offsets)
    return (taps / taps.sum()).astype(np.float32)


def _cubic(x: Image) -> Image:
    """Keys' cubic kernel with a = −0.5 at distances x ≥ 0 (IEEE Trans. ASSP 29(6), 1981, eq. 15)."""
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
