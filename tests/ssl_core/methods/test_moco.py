"""MoCo: the papers' numbers by version, keys of earlier steps as negatives, and a queue in lane order."""

from typing import Any

import pytest
import torch

from ssl_core.errors import UserError
from ssl_core.losses import info_nce
from ssl_core.methods import build_method
from ssl_core.methods.base import StepInfo
from ssl_core.methods.moco import MoCo, MoCoConfig, moco_views
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.types import GlobalRows
from ssl_core.views.recipes import recipe


def moco(**numbers: Any) -> MoCo:
    """A small encoder at 8 px."""
    arguments = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    encoder = build_encoder(ModelConfig(name="resnet18", image_size=8, stem="cifar", arguments=arguments))
    config = MoCoConfig(projector=(8, 5), **numbers)
    built = build_method("moco", config, encoder=encoder, recipe=recipe("simclr", image_size=8), seed=0)
    assert isinstance(built, MoCo)
    return built


def draws(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_numbers_follow_the_version() -> None:
    arguments = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    encoder = build_encoder(ModelConfig(name="resnet18", image_size=8, stem="cifar", arguments=arguments))
    views = recipe("simclr", image_size=8)
    first = MoCo(MoCoConfig(version=1, queue=4), encoder=encoder, recipe=views)
    second = MoCo(MoCoConfig(version=2, queue=4), encoder=encoder, recipe=views)
    assert (first.temperature, second.temperature) == (0.07, 0.2)
    assert [type(layer).__name__ for layer in first.projector.modules()].count("Linear") == 1
    assert [type(layer).__name__ for layer in second.projector.modules()].count("Linear") == 2
    assert moco_views(MoCoConfig(version=1))["blur"] == 0
    assert "blur" not in moco_views(MoCoConfig(version=2))


def test_loss_takes_keys_in_lane_order_and_negatives_of_earlier_steps_alone() -> None:
    method = moco(queue=7).double()
    q, k, earlier = draws(6, 5, seed=0), draws(6, 5, seed=1), draws(9, 5, seed=2)
    method.after_step(
        GlobalRows(rows={"q": earlier, "k": earlier}, num_lanes=3, own_lanes=range(3)), torch.tensor(True)
    )
    queue = torch.nn.functional.normalize(earlier, dim=1)[-7:]
    slot = torch.tensor([4, 0, 5, 2, 1, 3])
    rows: dict[str, torch.Tensor] = {"q": q, "k": k[slot], "slot": slot}
    parts = [method.loss(GlobalRows(rows=rows, num_lanes=3, own_lanes=own)) for own in (range(1), range(1, 3))]
    torch.testing.assert_close(sum(parts), info_nce(q, k, queue, temperature=0.2), rtol=1e-6, atol=0)


def test_key_networks_follow_before_the_forward_pass() -> None:
    method = moco(queue=4, momentum=0.75)
    weight, key = (next(net.parameters()) for net in (method.projector, method.key_projector))
    start = key.detach().clone()
    with torch.no_grad():
        weight.add_(1)
    method.before_step(StepInfo(step=0, total_steps=10))
    torch.testing.assert_close(key, start + 0.25)
    assert not key.requires_grad


@pytest.mark.parametrize("numbers", [{"queue": 0}, {"momentum": 1.0}, {"temperature": 0.0}])
def test_what_cannot_be_trained_with_is_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"method.{next(iter(numbers))}="):
        MoCoConfig(**numbers)
