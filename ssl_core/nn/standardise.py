"""Pixels to what networks take."""

import torch
from torch import Tensor


def standardised(pixels: Tensor, shift_K: Tensor, scale_K: Tensor) -> Tensor:
    """(pixels − shift) / scale, channel by channel.

    Args:
        pixels: uint8 [..., H, W, K], contiguous.
        shift_K: float, in levels of 255; one for all channels or one each.
        scale_K: as shift_K.

    Returns:
        [..., H, W, K] in their type.
    """
    width, channels = pixels.shape[-2:]
    gain_K = 1 / scale_K
    gain, offset = (values.expand(channels).repeat(width) for values in (gain_K, -shift_K * gain_K))
    rows = pixels.flatten(-2).to(gain.dtype)  # whole rows, as broadcasting over K values alone is four times slower
    return torch.addcmul(offset, rows, gain, out=rows).unflatten(-1, (width, channels))
