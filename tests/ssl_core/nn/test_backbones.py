"""Encoders: a function of name, arguments and seed; any of timm's models; nothing that could not be repeated."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import nn

from ssl_core.errors import UserError
from ssl_core.nn.backbones import Encoder, ModelConfig, build_encoder, check_takes, layer_scales, timm_arguments

TINY = ModelConfig(
    name="resnet18", image_size=16, stem="cifar", arguments={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
)
VIT = ModelConfig(name="vit_tiny_patch16_224", image_size=16, arguments={"patch_size": 4, "depth": 1, "embed_dim": 24})


def weights(encoder: Encoder) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in encoder.state_dict().values())


@pytest.mark.parametrize("config", [TINY, VIT], ids=["resnet", "vit"])
def test_weights_are_a_function_of_the_seed_alone(config: ModelConfig) -> None:
    torch.manual_seed(0)
    first = weights(build_encoder(config, seed=3))
    torch.manual_seed(1)
    assert weights(build_encoder(config, seed=3)) == first
    assert weights(build_encoder(config, seed=4)) != first


@pytest.mark.usefixtures("untouched_generators")
def test_no_generator_is_touched() -> None:
    build_encoder(TINY)
    build_encoder(VIT)


def test_cifar_stem_keeps_the_image_until_the_first_stage() -> None:
    encoder = build_encoder(TINY)
    stem = encoder.backbone.conv1
    assert isinstance(stem, nn.Conv2d)
    assert (stem.kernel_size, stem.stride, stem.padding, stem.bias) == ((3, 3), (1, 1), (1, 1), None)
    assert isinstance(encoder.backbone.maxpool, nn.Identity)
    assert encoder(torch.zeros(2, 3, 16, 16)).shape == (2, encoder.num_features) == (2, 16)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("stem", ["native", "cifar"])
def test_other_channels(stem: Literal["native", "cifar"], channels: int) -> None:
    config = replace(TINY, in_chans=channels, stem=stem)
    assert build_encoder(config)(torch.zeros(2, channels, 32, 32)).shape == (2, 16)


def test_cifar_stem_is_for_resnets() -> None:
    with pytest.raises(UserError, match=r"model\.stem=cifar"):
        build_encoder(replace(VIT, stem="cifar"))


@pytest.mark.parametrize(
    ("name", "fixed"),
    [
        ("vit_tiny_patch16_224", True),
        ("deit_tiny_patch16_224", True),
        ("mixer_s32_224", True),
        ("resnet18", False),
        ("efficientvit_b0", False),
        ("davit_tiny", False),
        ("convnext_tiny", False),
    ],
)
def test_models_of_fixed_input_size_are_told_it(name: str, fixed: bool) -> None:
    import timm

    arguments = timm_arguments(ModelConfig(name=name, image_size=64))
    assert arguments.get("img_size") == (64 if fixed else None)
    with torch.device("meta"):
        timm.create_model(name, **arguments)
    assert "img_size" in timm_arguments(ModelConfig(name=name, arguments={"img_size": 32}))


def test_position_embedding_follows_the_image_size() -> None:
    assert build_encoder(VIT)(torch.zeros(1, 3, 16, 16)).shape == (1, 24)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("resnet81", {}, "resnet81 is not a timm model: did you mean resnet"),
        ("hf-hub:someone/anything", {}, "is not a timm model"),
        ("local-dir:/tmp/anything", {}, "is not a timm model"),
        ("resnet18", {"depth": 3}, "cannot build model.name=resnet18 with .*depth"),
        ("resnet18", {"drop_rate": 0.1}, "model.arguments.drop_rate=0.1: dropout"),
        ("resnet18", {"drop_path_rate": 0.1}, "model.arguments.drop_path_rate=0.1"),
        ("vit_tiny_patch16_224", {"attn_drop_rate": 0.1}, "attn_drop_rate=0.1"),
        ("resnet18", {"checkpoint_path": "x.pth"}, "model.arguments.checkpoint_path"),
        ("resnet18", {"pretrained": True}, "model.arguments.pretrained"),
        ("swinv2_cr_tiny_ns_224", {"drop_path_rate": 0.1}, "drop_path_rate"),
        ("ghostnet_050", {}, "ghostnet_050 has dropout by default"),
        ("resnet18", {"global_pool": ""}, r"gives \[512, 7, 7\] an image"),
        ("vit_tiny_patch16_224", {"img_size": 64}, "does not take model.image_size=224: .*224"),
        ("tiny_vit_11m_224", {}, r"dropout by default \(stages"),
    ],
)
def test_what_cannot_be_built_or_repeated_is_refused_in_one_line(
    name: str, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says) as refused:
        build_encoder(ModelConfig(name=name, arguments=arguments))
    assert "\n" not in str(refused.value)


def test_dropout_by_default_can_be_switched_off() -> None:
    encoder = build_encoder(ModelConfig(name="ghostnet_050", image_size=32, arguments={"drop_rate": 0}))
    assert encoder.training
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, encoder.num_features) == (2, 1280)


def test_views_of_a_size_that_the_model_does_not_take_are_refused() -> None:
    check_takes(build_encoder(TINY), channels=3, height=12, width=20)
    vit = build_encoder(VIT)
    check_takes(vit, channels=3, height=16, width=16)
    with pytest.raises(UserError, match=r"views of 12 × 12 px .*leave views\.image_size out"):
        check_takes(vit, channels=3, height=12, width=12)
    assert vit.training


def test_layers_of_a_transformer_have_falling_rates() -> None:
    vit = build_encoder(replace(VIT, arguments={**VIT.arguments, "depth": 3}))
    scales = layer_scales(vit, decay=0.5)
    found = {name: scales[parameter] for name, parameter in vit.backbone.named_parameters()}
    assert {found["norm.weight"], found["norm.bias"]} == {0.5}
    for depth, scale in enumerate((0.125, 0.25, 0.5)):
        assert {found[name] for name in found if name.startswith(f"blocks.{depth}.")} == {scale}
    assert {found[name] for name in ("cls_token", "pos_embed", "patch_embed.proj.weight")} == {0.0625}


def test_layers_that_timm_does_not_name_are_refused() -> None:
    with pytest.raises(UserError, match="does not say which layers Linear has"):
        layer_scales(Encoder(nn.Linear(4, 2), 2), decay=0.5)
