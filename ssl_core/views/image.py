"""Filters and exact geometry on one image, for given parameters: padded crop, flip, blur, solarise.

Images are uint8 in [0, 255], [H, W, C] with C ≤ 4 (OpenCV's limit). Every operator returns a uint8 array and leaves its
input alone. The references are torchvision's functions of float tensors: blur is `gaussian_blur` with the same kernel
size within 0.6 level (it leaves out taps beyond 3.5 standard deviations); the others are exact.
"""

from math import ceil
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from cv2.typing import MatLike

Image = np.ndarray[Any, np.dtype[Any]]
Interpolation = Literal["bilinear", "bicubic"]


class Box(NamedTuple):
    """Rows top … top + height − 1 and columns left … left + width − 1 of an image."""

    top: int
    left: int
    height: int
    width: int


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
        image: uint8 [H, W, C].
        sigma: standard deviation in pixels.
        kernel_size: taps, odd; 1 leaves the image as it is. Edges are mirrored without repeating the outermost pixel.
    """
    radius = min(kernel_size // 2, ceil(3.5 * sigma))
    if radius == 0:
        return image
    weights = cv2.getGaussianKernel(2 * radius + 1, sigma, cv2.CV_32F)
    return shaped(cv2.sepFilter2D(image, -1, weights, weights), image.shape)


def blur_kernel_size(image_size: int) -> int:
    """SimCLR's kernel: a tenth of the image's height, made odd (arXiv 2002.05709, appendix A; 224 → 23, 32 → 3)."""
    return image_size // 10 // 2 * 2 + 1


def solarise(image: Image) -> Image:
    """Invert what is brighter than half of white: torchvision's `solarize` at 128."""
    return np.minimum(image, 255 - image)


def shaped(pixels: MatLike, shape: tuple[int, ...]) -> Image:
    """OpenCV's result with the channel axis that it drops from one-channel images."""
    return np.asarray(pixels).reshape(shape)
