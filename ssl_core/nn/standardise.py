"""Pixels to what networks take."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Standardise:
    """(pixels / 255 − mean) / std, channel by channel.

    Args:
        mean: of pixels in [0, 1]; one for all channels or one each.
        std: as `mean`.
        dtype: of the result.
        device: of the pixels.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], *, dtype: torch.dtype, device: torch.device
    ) -> None:
        scale_K = torch.tensor(std, dtype=dtype, device=device) * 255
        shift_K = torch.tensor(mean, dtype=dtype, device=device) * 255
        self._gain_K = 1 / scale_K
        self._offset_K = -shift_K * self._gain_K
        self._rows: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, pixels: Tensor) -> Tensor:
        """Standardise.

        Args:
            pixels: uint8 [..., H, W, K], contiguous.

        Returns:
            [..., H, W, K].
        """
        width, channels = pixels.shape[-2:]
        gain, offset = self._row(width, channels)
        rows = pixels.flatten(-2).to(gain.dtype)
        return torch.addcmul(offset, rows, gain, out=rows).unflatten(-1, (width, channels))

    def _row(self, width: int, channels: int) -> tuple[Tensor, Tensor]:
        """Gain and offset of each value of a row: broadcasting over K values alone is four times slower."""
        if (width, channels) not in self._rows:
            gain, offset = (values.expand(channels).repeat(width) for values in (self._gain_K, self._offset_K))
            self._rows[width, channels] = gain, offset
        return self._rows[width, channels]
