"""MAE: Masked Autoencoders Are Scalable Vision Learners (He et al., arXiv 2111.06377).

Section 3: most patches of an image are hidden; the encoder, a Vision Transformer, works on the visible ones alone; a
light decoder gets those and a learned token for every hidden one, and predicts pixels; the loss is the mean squared
error on hidden patches, standardised patch by patch. The representation is the encoder's output for the whole image.

Which patches are hidden is a function of (seed, epoch, sample), so it does not depend on workers, restarts or device.
The loss is a mean over samples: nothing is gathered.

Departure: without `class_token` in the model there is none, and features are the mean of the patches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ssl_core import rng
from ssl_core.data.lane_views import Recipe
from ssl_core.errors import UserError
from ssl_core.losses import masked_patch_error, unstandardised
from ssl_core.methods.base import StepInfo
from ssl_core.nn.backbones import Encoder
from ssl_core.nn.decoders import PatchDecoder
from ssl_core.nn.vision_transformer import (
    embed_patches,
    fix_sincos_position_,
    patchify,
    through_blocks,
    unpatchify,
    vision_transformer,
)
from ssl_core.types import GlobalRows, ViewBatch
from ssl_core.views.masks import MaskKind, visible_first


@dataclass(frozen=True, kw_only=True)
class MAEConfig:
    """MAE's own numbers; the defaults are the paper's for ViT-B/L.

    Attributes:
        mask_ratio: share of the patches that is hidden.
        mask: how they are chosen (figure 6).
        encoder_mask_token: whether the encoder sees a learned token in place of every hidden patch (table 1c), which
            costs the speed that masking gains.
        target: pixels, or pixels standardised patch by patch (table 1d).
        decoder_width: of the decoder's tokens.
        decoder_depth: its blocks.
        decoder_heads: its attention heads; None is one for each 32 of the width.
    """

    mask_ratio: float = 0.75
    mask: MaskKind = "random"
    encoder_mask_token: bool = False
    target: Literal["normalised", "pixels"] = "normalised"
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        if not 0 < self.mask_ratio < 1:
            raise UserError(f"method.mask_ratio={self.mask_ratio}: use a share between 0 and 1")
        if self.decoder_depth < 1:
            raise UserError(f"method.decoder_depth={self.decoder_depth}: use at least 1 block")
        if self.decoder_width < 4 or self.decoder_width % 4 or self.decoder_width % self.heads:
            width, heads = self.decoder_width, self.heads
            raise UserError(f"method.decoder_width={width} with {heads} heads: use a multiple of 4 and of the heads")

    @property
    def heads(self) -> int:
        """Attention heads of the decoder."""
        return max(1, self.decoder_width // 32) if self.decoder_heads is None else max(1, self.decoder_heads)


class MAE(nn.Module):
    """Encoder on visible patches and decoder; one view."""

    per_sample = True
    shuffled_view: int | None = None

    def __init__(self, config: MAEConfig, *, encoder: Encoder, recipe: Recipe) -> None:
        super().__init__()
        if recipe.num_views != 1:
            raise UserError(
                f"method=mae reconstructs one view, but the recipe makes {recipe.num_views}: use views.views=1"
            )
        vit = vision_transformer(encoder, method="mae")
        fix_sincos_position_(vit)
        self.rows, self.cols = vit.patch_embed.grid_size
        self.patch: int = vit.patch_embed.patch_size[0]
        self.num_masked = round(self.rows * self.cols * config.mask_ratio)
        if not 0 < self.num_masked < self.rows * self.cols:
            raise UserError(
                f"method.mask_ratio={config.mask_ratio} of {self.rows * self.cols} patches hides {self.num_masked}: "
                "at least one must be hidden and one visible; use smaller patches or larger images"
            )
        self.encoder = encoder
        self.decoder = PatchDecoder(
            dim=vit.embed_dim,
            width=config.decoder_width,
            depth=config.decoder_depth,
            heads=config.heads,
            grid=(self.rows, self.cols),
            values=self.patch**2 * vit.patch_embed.proj.in_channels,
        )
        self.mask_token = None
        if config.encoder_mask_token:
            self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, vit.embed_dim), std=0.02))
        self.recipe = recipe
        self.mask: MaskKind = config.mask
        self.normalised = config.target == "normalised"

    def embed(self, batch: ViewBatch) -> Mapping[str, Tensor]:
        """Each sample's error: {"error": [L · b]}."""
        images_NCHW = batch.images["views"]
        predicted_NTV, masked_NT = self.reconstruct(images_NCHW, self.mask_keys(batch))
        target_NTV = patchify(images_NCHW, self.patch)
        return {"error": masked_patch_error(predicted_NTV, target_NTV, masked_NT, normalised=self.normalised)}

    def loss(self, rows: GlobalRows) -> Tensor:
        """The mean of the samples' errors."""
        return rows.rows["error"].mean()

    def before_step(self, info: StepInfo) -> None:
        """MAE has no state of its own."""

    def after_step(self, rows: GlobalRows, keep: Tensor) -> None:
        """MAE has no state of its own."""

    @torch.no_grad()
    def pictures(self, batch: ViewBatch) -> Mapping[str, Tensor]:
        """What is seen, what is made of it, and the image: {…: [N, 3, K, H, W]}, visible patches kept as they are.

        A prediction of standardised pixels is shown with its patch's own mean and deviation.
        """
        images_NCHW = batch.images["views"]
        predicted_NTV, masked_NT = self.reconstruct(images_NCHW, self.mask_keys(batch))
        target_NTV = patchify(images_NCHW, self.patch)
        hidden = masked_NT[:, :, None] == 1
        predicted_NTV = predicted_NTV.to(target_NTV.dtype)
        if self.normalised:
            predicted_NTV = unstandardised(predicted_NTV, target_NTV)
        shown = [torch.zeros_like(target_NTV), predicted_NTV, target_NTV]
        steps = [torch.where(hidden, one, target_NTV) for one in shown]
        images = [unpatchify(one, rows=self.rows, cols=self.cols, patch=self.patch) for one in steps]
        return {"masked, reconstructed, target": torch.stack(images, 1)}

    def mask_keys(self, batch: ViewBatch) -> Tensor:
        """int64, one a sample: what its mask is drawn from."""
        return rng.key(batch.seed, "mask", batch.epoch, batch.draws)

    def reconstruct(self, images_NCHW: Tensor, keys_N: Tensor) -> tuple[Tensor, Tensor]:
        """Hide patches and predict all.

        Returns:
            [N, T, patch · patch · C] predictions, and [N, T] 1 where a patch was hidden.
        """
        order_NT = visible_first(self.mask, keys_N, rows=self.rows, cols=self.cols)
        place_NT = order_NT[:, : order_NT.shape[1] - self.num_masked]
        masked_NT = torch.ones_like(order_NT).scatter(1, place_NT, 0)
        prefix_NPD, patches_NTD = embed_patches(self.encoder.backbone, images_NCHW)
        if self.mask_token is None:
            visible_NTD = patches_NTD.gather(1, place_NT[:, :, None].expand(-1, -1, patches_NTD.shape[2]))
        else:
            hidden = self.mask_token + self._position().to(patches_NTD.dtype)
            visible_NTD = torch.where(masked_NT[:, :, None] == 1, hidden.to(patches_NTD.dtype), patches_NTD)
        tokens = through_blocks(self.encoder.backbone, torch.cat([prefix_NPD, visible_NTD], 1))
        tokens = tokens[:, prefix_NPD.shape[1] :]
        return self.decoder(tokens, place_NT if self.mask_token is None else None), masked_NT

    def _position(self) -> Tensor:
        """The patches' position embedding: [1, T, D]."""
        position: Tensor = self.encoder.backbone.get_parameter("pos_embed")
        return position[:, position.shape[1] - self.rows * self.cols :]
