"""Crop and resize: torchvision's `resize(..., antialias=True)` of a box of an image.

A row of the result is a weighted sum of neighbouring rows, with the weights of a triangle (bilinear) or of Keys' cubic
(bicubic), stretched by the ratio where the image shrinks. Sums of rows are what processors are fast at, so columns are
done as rows of the transposed image. Between the two, bilinear values are rounded, as by Pillow and by torchvision for
uint8: with exact weights the result lies within one level of what torchvision makes of floats. Cubic ones overshoot, so
they are not limited to bytes there, and rounded to 1/64: within 0.52 level.

Where bilinear sums have few terms (enlarging, or shrinking to a third at most) weights are whole 256ths, so that a sum
fits 16 bits and a processor adds twice as many at a time without converting any: within two levels where neighbours are
as different as can be; on photos within 1.5, and in the mean as near as with exact weights, 0.29.
"""

from functools import lru_cache
from math import ceil
from typing import Any

import cv2
import numpy as np

from ssl_core.views.compiled import compiled, kept
from ssl_core.views.image import Box, Image, Interpolation

_REACH = {"bilinear": 1, "bicubic": 2}  # half the width of the kernel, in pixels of the smaller image
_BETWEEN: dict[str, tuple[type[np.integer[Any]], int]] = {"bilinear": (np.uint8, 1), "bicubic": (np.int16, 64)}
"""What holds the rows that wait for their columns, and how many of its units a level is."""
_PARTS = 256  # what a sum of rows has of them in 16 bits, whose weights are whole parts, each off by half of one or so
_FEW_TERMS = 6  # at most in such a sum, see `_sum_in_16_bits`


def crop_resize(
    image: Image,
    box: Box,
    *,
    height: int,
    width: int,
    interpolation: Interpolation = "bilinear",
    mirrored: bool = False,
) -> Image:
    """Cut a box out of an image and resize it, antialiased along each side that shrinks.

    Args:
        image: uint8 [H, W, C], C ≤ 4.
        box: what to cut, at least one pixel; it lies inside the image.
        height: rows of the result.
        width: columns of the result.
        interpolation: the kernel, as torchvision names it.
        mirrored: exchange left and right as well, which costs nothing here.

    Returns:
        uint8 [height, width, C], in new memory.
    """
    if box.top < 0 or box.left < 0 or box.top + box.height > image.shape[0] or box.left + box.width > image.shape[1]:
        raise ValueError(f"{box} does not lie in an image of {image.shape[0]} × {image.shape[1]} pixels")
    if image.dtype != np.uint8:
        raise ValueError(f"an image of uint8 is needed, not of {image.dtype}")
    channels = image.shape[2]
    between, units = _BETWEEN[interpolation]
    first, weights = _sums(box.height, height, interpolation, gain=units)
    rows = np.empty((height, box.width * channels), between)
    _sum_rows(_as_rows(image), box.top, box.left * channels, first, weights, rows)
    first, weights = _sums(box.width, width, interpolation, mirrored=mirrored, gain=1 / units)
    columns = np.empty((width, height * channels), np.uint8)
    _sum_rows(_as_rows(_transposed(rows, box.width, channels)), 0, 0, first, weights, columns)
    return _transposed(columns, height, channels)


def _as_rows(image: Image) -> Image:
    """[H, W, C] → [H, W·C]."""
    return np.ascontiguousarray(image).reshape(len(image), -1)


def _transposed(rows: Image, width: int, channels: int) -> Image:
    """[H, W·C] → [W, H, C]."""
    return np.asarray(cv2.transpose(rows.reshape(len(rows), width, channels))).reshape(width, len(rows), channels)


@lru_cache(maxsize=1024)
def _sums(
    length: int, target: int, interpolation: Interpolation, *, mirrored: bool = False, gain: float
) -> tuple[Image, Image]:
    """What each of `target` rows is the sum of, where there are `length`.

    Returns:
        The first row that counts, int64 [target], and the weights of that and the following ones [target, even number],
        0 where there are no more: float32 of sum `gain`, or uint16 of sum 256.
    """
    reach = _REACH[interpolation]
    first = np.empty(target, np.int64)
    weights = np.zeros((target, 2 * ceil(reach * max(length / target, 1)) + 2))
    terms = _fill(length, reach, interpolation == "bicubic", first, weights)
    weights = weights[:, : terms + terms % 2]
    if interpolation == "bilinear" and weights.shape[1] <= _FEW_TERMS:
        result = np.empty(weights.shape, np.uint16)
        _round(weights, result)
    else:
        result = (gain * weights).astype(np.float32)
    return (first[::-1].copy(), result[::-1].copy()) if mirrored else (first, result)


@kept
def _fill(length: int, reach: int, cubic: bool, first: Image, weights: Image) -> int:
    """Write `_sums`' first rows and weights, of sum 1; say how many the longest sum has."""
    ratio = length / len(first)
    stretch = max(ratio, 1.0)
    longest = 0
    for y in range(len(first)):
        centre = (y + 0.5) * ratio
        begin = int(max(centre - reach * stretch + 0.5, 0.0))
        terms = min(int(centre + reach * stretch + 0.5), length) - begin
        total = 0.0
        for k in range(terms):
            distance = abs(begin + k + 0.5 - centre) / stretch
            weights[y, k] = _cubic(distance) if cubic else max(0.0, 1.0 - distance)
            total += weights[y, k]
        weights[y, :terms] /= total
        first[y] = begin
        longest = max(longest, terms)
    return longest


@kept
def _round(weights: Image, result: Image) -> None:
    """Write weights of sum 1 in whole parts, rounded in such a way that the sum stays: largest remainders upwards."""
    terms = weights.shape[1]
    for y in range(len(weights)):
        missing = _PARTS
        for k in range(terms):
            result[y, k] = int(_PARTS * weights[y, k])
            missing -= result[y, k]
        for _ in range(missing):
            largest, most = 0, -1.0
            for k in range(terms):
                remainder = _PARTS * weights[y, k] - result[y, k]
                if remainder > most:
                    largest, most = k, remainder
            result[y, largest] += 1


@compiled
def _cubic(x: float) -> float:
    """Keys' cubic kernel with a = −0.5 at a distance x ≥ 0 (IEEE Trans. ASSP 29(6), 1981, eq. 15)."""
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def _sum_rows(image: Image, top: int, left: int, first: Image, weights: Image, result: Image) -> None:
    """Write Σ weights[y, k] · image[top + first[y] + k, left …] to result[y]; two rows of the image at a time."""
    (_sum_in_16_bits if weights.dtype == np.uint16 else _sum_in_floats)(image, top, left, first, weights, result)


@kept
def _sum_in_16_bits(image: Image, top: int, left: int, first: Image, weights: Image, result: Image) -> None:
    """`_sum_rows` with 2, 4 or 6 weights of sum 256."""
    count, terms = result.shape[1], weights.shape[1]
    for y in range(len(first)):
        at = top + first[y]
        a, b = _part(image, at, left, count), _part(image, at + 1, left, count)
        if terms == 2:
            _sum_2(a, b, weights[y], result[y])
            continue
        c, d = _part(image, at + 2, left, count), _part(image, at + 3, left, count)
        if terms == 4:
            _sum_4(a, b, c, d, weights[y], result[y])
            continue
        e, f = _part(image, at + 4, left, count), _part(image, at + 5, left, count)
        _sum_6(a, b, c, d, e, f, weights[y], result[y])


@compiled
def _part(image: Image, row: int, left: int, count: int) -> Image:
    """Some of a row; of the last one where there is none, which has a weight of 0."""
    return image[min(row, len(image) - 1), left : left + count]


@compiled
def _sum_2(a: Image, b: Image, weights: Image, result: Image) -> None:
    """The rounded sum of two rows."""
    wa, wb = weights[0], weights[1]
    for i in range(len(result)):
        level = np.uint16(a[i]) * wa + np.uint16(b[i]) * wb
        result[i] = np.uint16(level + np.uint16(128)) >> np.uint16(8)


@compiled
def _sum_4(a: Image, b: Image, c: Image, d: Image, weights: Image, result: Image) -> None:
    """The rounded sum of four rows."""
    wa, wb, wc, wd = weights[0], weights[1], weights[2], weights[3]
    for i in range(len(result)):
        level = np.uint16(a[i]) * wa + np.uint16(b[i]) * wb + np.uint16(c[i]) * wc + np.uint16(d[i]) * wd
        result[i] = np.uint16(level + np.uint16(128)) >> np.uint16(8)


@compiled
def _sum_6(a: Image, b: Image, c: Image, d: Image, e: Image, f: Image, weights: Image, result: Image) -> None:
    """The rounded sum of six rows."""
    wa, wb, wc, wd, we, wf = weights[0], weights[1], weights[2], weights[3], weights[4], weights[5]
    for i in range(len(result)):
        level = np.uint16(a[i]) * wa + np.uint16(b[i]) * wb + np.uint16(c[i]) * wc
        level += np.uint16(d[i]) * wd + np.uint16(e[i]) * we + np.uint16(f[i]) * wf
        result[i] = np.uint16(level + np.uint16(128)) >> np.uint16(8)


@kept
def _sum_in_floats(image: Image, top: int, left: int, first: Image, weights: Image, result: Image) -> None:
    """`_sum_rows` with any weights."""
    count, terms, bottom = result.shape[1], weights.shape[1], len(image) - 1
    low, high = np.float32(0 if result.itemsize == 1 else -32768), np.float32(255 if result.itemsize == 1 else 32767)
    row = np.empty(count, np.float32)
    for y in range(len(first)):
        for k in range(0, terms, 2):
            above = min(top + first[y] + k, bottom)  # a weight of 0 may belong to a row that is not there
            below = min(above + 1, bottom)
            upper, lower = image[above, left : left + count], image[below, left : left + count]
            one, other = weights[y, k], weights[y, k + 1]
            if terms == 2:
                _sum_pair(upper, one, lower, other, low, high, result[y])
            elif k == 0:
                _begin(row, upper, one, lower, other)
            elif one or other:
                _add(row, upper, one, lower, other)
        if terms > 2:
            _finish(row, low, high, result[y])


@compiled
def _sum_pair(
    upper: Image, one: np.float32, lower: Image, other: np.float32, low: np.float32, high: np.float32, result: Image
) -> None:
    """The rounded sum of two rows."""
    for i in range(len(result)):
        level = one * np.float32(upper[i]) + other * np.float32(lower[i])
        result[i] = np.int32(np.floor(min(max(level, low), high) + np.float32(0.5)))


@compiled
def _begin(row: Image, upper: Image, one: np.float32, lower: Image, other: np.float32) -> None:
    """Begin a sum with two rows."""
    for i in range(len(row)):
        row[i] = one * np.float32(upper[i]) + other * np.float32(lower[i])


@compiled
def _add(row: Image, upper: Image, one: np.float32, lower: Image, other: np.float32) -> None:
    """Add two rows to a sum."""
    for i in range(len(row)):
        row[i] += one * np.float32(upper[i]) + other * np.float32(lower[i])


@compiled
def _finish(row: Image, low: np.float32, high: np.float32, result: Image) -> None:
    """The rounded sum."""
    for i in range(len(row)):
        result[i] = np.int32(np.floor(min(max(row[i], low), high) + np.float32(0.5)))
