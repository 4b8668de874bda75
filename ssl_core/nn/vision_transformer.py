"""What methods need of timm's Vision Transformer beyond calling it: its patches, positions and blocks."""

from typing import Any, cast

import torch
from timm.models import checkpoint_seq
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_core.errors import UserError
from ssl_core.nn.backbones import Encoder
from ssl_core.nn.position import sincos_position_embedding


def is_vision_transformer(encoder: Encoder) -> bool:
    """Whether the backbone is timm's `VisionTransformer`."""
    return isinstance(encoder.backbone, VisionTransformer)


def vision_transformer(encoder: Encoder, *, method: str) -> Any:
    """The encoder's backbone where it is a Vision Transformer; raises UserError where it is not."""
    backbone: Any = encoder.backbone
    if not is_vision_transformer(encoder):
        raise UserError(
            f"method={method} needs a Vision Transformer, but the model is a {type(backbone).__name__}: "
            "use model=vit_micro, vit_small or vit_base"
        )
    if backbone.pos_embed is None:
        raise UserError(f"method={method} needs a model with absolute position embedding: use model=vit_base")
    return backbone


@torch.no_grad()
def fix_sincos_position_(vit: Any) -> None:
    """Give the patches the fixed 2-D sine-cosine position embedding, and class or register tokens zero."""
    rows, cols = vit.patch_embed.grid_size
    table_TD = sincos_position_embedding(rows, cols, vit.embed_dim)
    vit.pos_embed.zero_()
    vit.pos_embed[0, vit.pos_embed.shape[1] - len(table_TD) :] = table_TD
    vit.pos_embed.requires_grad_(False)


def embed_patches(vit: Any, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Prefix tokens and patches with their positions, before the first block.

    Returns:
        [N, P, D] class and register tokens (P may be 0), and [N, T, D] patches in row-major order.
    """
    patches_NTD = vit.patch_embed(images_NCHW)
    tokens = [one for one in (vit.cls_token, getattr(vit, "reg_token", None)) if one is not None]
    prefix_1PD = torch.cat(tokens, 1) if tokens else patches_NTD.new_zeros(1, 0, vit.embed_dim)
    with_position = vit.pos_embed.shape[1] - patches_NTD.shape[1]  # prefix tokens that have an embedding too
    if with_position:
        prefix_1PD = prefix_1PD + vit.pos_embed[:, :with_position]
    patches_NTD = patches_NTD + vit.pos_embed[:, with_position:]
    return prefix_1PD.expand(len(images_NCHW), -1, -1).to(patches_NTD.dtype), patches_NTD


def through_blocks(vit: Any, tokens_NTD: Tensor) -> Tensor:
    """All blocks and the norm after them."""
    tokens_NTD = vit.norm_pre(tokens_NTD)
    return vit.norm(checkpoint_seq(vit.blocks, tokens_NTD) if vit.grad_checkpointing else vit.blocks(tokens_NTD))


def patchify(images_NCHW: Tensor, patch: int) -> Tensor:
    """Images as rows of patches: [N, C, H, W] → [N, T, patch · patch · C], row-major, as in MAE's code."""
    x = images_NCHW.unfold(2, patch, patch).unfold(3, patch, patch)  # [N, C, rows, cols, p, q]
    return x.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches_NTV: Tensor, *, rows: int, cols: int, patch: int) -> Tensor:
    """The inverse of `patchify`: [N, rows · cols, patch · patch · C] → [N, C, H, W]."""
    x = patches_NTV.unflatten(2, (patch, patch, -1)).unflatten(1, (rows, cols))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def freeze_patch_projection_(vit: Any) -> None:
    """Keep the patch projection as it was drawn (MoCo v3, arXiv 2104.02057, section 4.1)."""
    cast(nn.Module, vit.patch_embed).requires_grad_(False)
