"""MoCo v3: symmetric loss against the keys of the whole batch, a frozen patch projection, a rising momentum."""

from typing import Any

import pytest
import torch

from ssl_core.errors import UserError
from ssl_core.methods import build_method
from ssl_core.methods.base import StepInfo
from ssl_core.methods.moco_v3 import MoCoV3, MoCoV3Config
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.types import GlobalRows
from ssl_core.views.recipes import recipe

VIT = ModelConfig(
    name="vit_tiny_patch16_224",
    image_size=8,
    arguments={"patch_size": 4, "depth": 1, "num_heads": 2, "embed_dim": 16, "global_pool": "avg"},
)


def moco_v3(**numbers: Any) -> MoCoV3:
    config = MoCoV3Config(projector=(8, 5), predictor=(8, 5), **numbers)
    views = recipe("simclr", image_size=8)
    built = build_method("moco_v3", config, encoder=build_encoder(VIT), recipe=views, seed=0)
    assert isinstance(built, MoCoV3)
    return built


def test_loss_is_the_papers_over_all_lanes() -> None:
    method = moco_v3(temperature=0.5)
    generator = torch.Generator().manual_seed(0)
    rows = {name: torch.randn(6, 5, generator=generator, dtype=torch.float64) for name in ("q0", "q1", "k0", "k1")}
    expected = torch.zeros((), dtype=torch.float64)
    for query, key in (("q0", "k1"), ("q1", "k0")):  # algorithm 1, in full
        cosines = torch.nn.functional.cosine_similarity(rows[query][:, None], rows[key][None], dim=2)
        expected += 2 * 0.5 * torch.nn.functional.cross_entropy(cosines / 0.5, torch.arange(6))
    parts = [method.loss(GlobalRows(rows=rows, num_lanes=3, own_lanes=own)) for own in (range(1), range(1, 3))]
    torch.testing.assert_close(sum(parts), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("frozen", [True, False])
def test_patch_projection_is_frozen_where_asked(frozen: bool) -> None:
    method = moco_v3(freeze_patch_projection=frozen)
    weight = method.encoder.backbone.get_parameter("patch_embed.proj.weight")
    assert weight.requires_grad is not frozen


def test_momentum_rises_to_one() -> None:
    method = moco_v3(momentum=0.5)
    weight, key = (next(net.parameters()) for net in (method.projector, method.momentum_projector))
    start = key.detach().clone()
    with torch.no_grad():
        weight.add_(1)
    method.before_step(StepInfo(step=0, total_steps=10))
    torch.testing.assert_close(key, start + 0.5)
    method.before_step(StepInfo(step=10, total_steps=10))
    torch.testing.assert_close(key, start + 0.5)


@pytest.mark.parametrize("numbers", [{"predictor": (8, 4)}, {"momentum": 1.5}, {"temperature": 0.0}])
def test_what_cannot_be_trained_with_is_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"method.{next(iter(numbers))}="):
        MoCoV3Config(**numbers)
