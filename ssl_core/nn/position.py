"""Position embeddings."""

import torch
from torch import Tensor


def sincos_position_embedding(rows: int, cols: int, dim: int) -> Tensor:
    """2-D sine-cosine position embedding in MAE's order (arXiv 2111.06377; Vaswani et al., section 3.5, per axis).

    Args:
        rows: patches from top to bottom.
        cols: patches from left to right.
        dim: channels, a multiple of 4. The first half encodes x, the second y; each is [sin(pos·ω) | cos(pos·ω)] with
            ω_k = 10000^(−k / (dim/4)).

    Returns:
        float32 [rows · cols, dim], row-major.
    """
    if dim % 4:
        raise ValueError(f"sincos_position_embedding: dim={dim} must be a multiple of 4")
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(cols).double(), indexing="ij")
    halves = [
        torch.cat([(axis.reshape(-1, 1) * omega).sin(), (axis.reshape(-1, 1) * omega).cos()], 1) for axis in (x, y)
    ]
    return torch.cat(halves, 1).float()
