"""MAE: hidden pixels do not reach the prediction, masks follow from the keys, the loss is a mean over samples."""

from typing import Any

import pytest
import torch

from ssl_core.errors import UserError
from ssl_core.methods import build_method
from ssl_core.methods.mae import MAE, MAEConfig
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.types import GlobalRows, ViewBatch
from ssl_core.views.recipes import recipe

SIZE, PATCH = 16, 4
VIT = ModelConfig(
    name="vit_tiny_patch16_224",
    image_size=SIZE,
    arguments={"patch_size": PATCH, "depth": 1, "num_heads": 2, "embed_dim": 16, "global_pool": "avg"},
)
RESNET = ModelConfig(name="resnet18", image_size=SIZE, stem="cifar", arguments={"layers": [1, 1, 1, 1]})


def mae(model: ModelConfig = VIT, **numbers: Any) -> MAE:
    config = MAEConfig(decoder_width=16, decoder_depth=1, decoder_heads=2, **numbers)
    views = recipe("simclr", image_size=SIZE, views=1)
    built = build_method("mae", config, encoder=build_encoder(model), recipe=views, seed=0)
    assert isinstance(built, MAE)
    return built


def batch(positions: list[int]) -> ViewBatch:
    images = torch.randn(64, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))[positions]
    places = torch.tensor(positions)
    return ViewBatch(images={"views": images}, draws=places, num_lanes=1, step=0, epoch=2, seed=3)


@pytest.mark.parametrize("token", [False, True])
def test_prediction_does_not_see_hidden_pixels(token: bool) -> None:
    method, some = mae(encoder_mask_token=token).eval(), batch([1, 5, 9])
    images, keys = some.images["views"], method.mask_keys(some)
    predicted, masked = method.reconstruct(images, keys)
    assert masked.sum(1).tolist() == [12] * 3
    hidden = masked.view(3, 1, 4, 4).repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)
    torch.testing.assert_close(method.reconstruct(images + 7 * hidden, keys)[0], predicted)
    assert not torch.allclose(method.reconstruct(images + 7 * (1 - hidden), keys)[0], predicted)


def test_more_views_than_one_are_refused() -> None:
    with pytest.raises(UserError, match=r"use views\.views=1"):
        build_method("mae", MAEConfig(), encoder=build_encoder(VIT), recipe=recipe("simclr", image_size=SIZE), seed=0)


def test_a_sample_has_its_mask_whatever_its_neighbours() -> None:
    method = mae().eval()
    together, alone = batch([4, 7, 2]), batch([7])
    torch.testing.assert_close(method.embed(together)["error"][1:2], method.embed(alone)["error"])


def test_loss_is_the_mean_of_the_errors() -> None:
    rows = GlobalRows(rows={"error": torch.tensor([1.0, 2.0, 6.0])}, num_lanes=1, own_lanes=range(1))
    assert mae().loss(rows) == 3


@pytest.mark.parametrize(
    ("model", "numbers", "message"),
    [
        (RESNET, {}, "method=mae needs a Vision Transformer"),
        (VIT, {"mask_ratio": 1.0}, "method.mask_ratio=1.0"),
        (VIT, {"mask_ratio": 0.01}, "at least one must be hidden"),
    ],
)
def test_what_cannot_be_trained_with_is_refused(model: ModelConfig, numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        mae(model, **numbers)


@pytest.mark.parametrize("target", ["normalised", "pixels"])
def test_its_pictures_show_the_masked_image_the_reconstruction_and_the_image(target: str) -> None:
    method, some = mae(target=target).eval(), batch([1, 5, 9])
    images = some.images["views"]
    shown = method.pictures(some)["masked, reconstructed, target"]
    assert shown.shape == (3, 3, 3, SIZE, SIZE)
    hidden = method.reconstruct(images, method.mask_keys(some))[1].view(3, 1, 4, 4)
    hidden = hidden.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3) == 1
    torch.testing.assert_close(shown[:, 0], images.masked_fill(hidden, 0))
    torch.testing.assert_close(shown[:, 1].masked_fill(hidden, 0), shown[:, 0])
    torch.testing.assert_close(shown[:, 2], images)
    assert not torch.allclose(shown[:, 1], shown[:, 2])
