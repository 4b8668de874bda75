"""Decoders: from tokens back to pixels."""

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_core.nn.position import sincos_position_embedding


class PatchDecoder(nn.Module):
    """MAE's light decoder (arXiv 2111.06377, section 3): transformer blocks over all patches, then their pixels.

    Args:
        dim: D, width of the encoder's tokens.
        width: of the decoder, a multiple of 4 and of `heads`.
        depth: blocks.
        heads: attention heads.
        grid: patches from top to bottom and from left to right.
        values: numbers a patch has, patch · patch · channels.
    """

    position: Tensor

    def __init__(self, *, dim: int, width: int, depth: int, heads: int, grid: tuple[int, int], values: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, width), std=0.02))
        self.register_buffer("position", sincos_position_embedding(*grid, width)[None], persistent=False)
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, values)

    def forward(self, tokens_NTD: Tensor, place_NT: Tensor | None) -> Tensor:
        """Predict all patches.

        Args:
            tokens_NTD: what the encoder made of the patches it saw.
            place_NT: int64, where in the grid each of them lies; None where the encoder saw all, in order.

        Returns:
            [N, rows · cols, values].
        """
        x = self.narrow(tokens_NTD)
        if place_NT is not None:
            whole = self.mask_token.to(x.dtype).expand(len(x), self.position.shape[1], -1)
            x = whole.scatter(1, place_NT[:, :, None].expand(-1, -1, x.shape[2]), x)
        return self.pixels(self.norm(self.blocks(x + self.position)))
