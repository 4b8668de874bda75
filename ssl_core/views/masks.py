"""Which patches a masked method hides: pure functions of keys, the same on CPU and GPU.

Each gives an order of the patches, most visible first; the first T − masked of them stay.
"""

from typing import Literal

import torch
from torch import Tensor

from ssl_core import rng

MaskKind = Literal["random", "block", "grid"]


def visible_first(kind: MaskKind, keys_N: Tensor, *, rows: int, cols: int) -> Tensor:
    """Order the patches of each sample.

    Args:
        kind: "random": a uniform permutation. "block": what lies farthest from a keyed centre is visible, so that the
            hidden patches are one block of keyed height to width. "grid": patches in the order in which an ordered
            dither fills a plane, so that the visible ones lie evenly; at ratio 0.75 one of each 2 × 2 (MAE,
            arXiv 2111.06377, figure 6).
        keys_N: int64, one a sample.
        rows: of patches.
        cols: of patches.

    Returns:
        int64 [N, rows · cols].
    """
    noise_NT = rng.uniform(keys_N, rows * cols + 3)
    noise_NT, drawn_N3 = noise_NT[:, :-3], noise_NT[:, -3:]
    if kind == "random":
        return noise_NT.argsort(dim=1, stable=True)
    y_T = torch.arange(rows, device=keys_N.device).repeat_interleave(cols)
    x_T = torch.arange(cols, device=keys_N.device).repeat(rows)
    if kind == "grid":
        offset_N = (drawn_N3 * 4).long()
        rank_NT = _dither_rank(y_T + offset_N[:, :1], x_T + offset_N[:, 1:2])
        return (rank_NT + noise_NT).argsort(dim=1, stable=True)
    centre_N2 = drawn_N3[:, :2] * torch.tensor([rows, cols], device=keys_N.device)
    stretch_N1 = (0.3 ** (1 - 2 * drawn_N3[:, 2:])) ** 0.5  # height to width between 0.3 and 1 / 0.3, as in BEiT
    away_NT = torch.maximum(
        (y_T + 0.5 - centre_N2[:, :1]).abs() / stretch_N1, (x_T + 0.5 - centre_N2[:, 1:]).abs() * stretch_N1
    )
    return (away_NT + 1e-6 * noise_NT).argsort(dim=1, descending=True, stable=True)


def _dither_rank(y: Tensor, x: Tensor) -> Tensor:
    """Bayer's 4 × 4 ordered dither matrix: 0 … 15, of which the first n lie as evenly as n can."""
    rank = torch.zeros_like(y + x)
    for bit in (0, 1):
        odd_y, odd_x = (y >> bit) & 1, (x >> bit) & 1
        rank = rank + (((odd_x ^ odd_y) * 2 + odd_y) << (2 * (1 - bit)))
    return rank
