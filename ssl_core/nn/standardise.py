"""Pixels to what networks take."""

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
    rows = pixels.flatten(-2).to(shift_K.dtype)  # whole rows, as broadcasting over K values alone is four times slower
    shift, scale = (values.expand(channels).repeat(width) for values in (shift_K, scale_K))
    return rows.sub_(shift).div_(scale).unflatten(-1, (width, channels))
