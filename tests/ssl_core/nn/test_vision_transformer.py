"""Patches, positions and blocks taken apart are the whole transformer."""

from typing import Any

import pytest
import torch

from ssl_core.errors import UserError
from ssl_core.nn.backbones import Encoder, ModelConfig, build_encoder
from ssl_core.nn.position import sincos_position_embedding
from ssl_core.nn.vision_transformer import (
    embed_patches,
    fix_sincos_position_,
    patchify,
    through_blocks,
    unpatchify,
    vision_transformer,
)

TINY: dict[str, Any] = {"patch_size": 4, "depth": 2, "num_heads": 2, "embed_dim": 16}


def encoder(**arguments: Any) -> Encoder:
    return build_encoder(ModelConfig(name="vit_tiny_patch16_224", image_size=16, arguments={**TINY, **arguments}))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 2}, {"reg_tokens": 2, "no_embed_class": True}],
)
def test_the_parts_are_the_whole(arguments: dict[str, Any]) -> None:
    vit = vision_transformer(encoder(**arguments), method="mae")
    images = torch.randn(2, 3, 16, 16)
    prefix, patches = embed_patches(vit, images)
    assert torch.allclose(through_blocks(vit, torch.cat([prefix, patches], 1)), vit.forward_features(images), atol=1e-6)


def test_positions_are_fixed_and_prefix_tokens_have_none() -> None:
    vit = vision_transformer(encoder(), method="mae")
    fix_sincos_position_(vit)
    assert torch.equal(vit.pos_embed[0, 1:], sincos_position_embedding(4, 4, 16))
    assert not vit.pos_embed[0, 0].any()
    assert not vit.pos_embed.requires_grad


def test_patches_lie_row_by_row_and_come_back() -> None:
    images = torch.randn(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    assert torch.equal(patches[0, 4].view(4, 4, 3), images[0, :, 4:8, 4:8].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches, rows=2, cols=3, patch=4), images)


def test_a_resnet_is_refused_in_words() -> None:
    resnet = build_encoder(ModelConfig(name="resnet18", image_size=32))
    with pytest.raises(UserError, match="method=mae needs a Vision Transformer, but the model is a ResNet"):
        vision_transformer(resnet, method="mae")
