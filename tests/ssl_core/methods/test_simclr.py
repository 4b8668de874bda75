"""SimCLR: rows lie (lane, view, sample), views of a sample are positives, the parts add up to the loss."""

import pytest
import torch

from ssl_core.losses import nt_xent
from ssl_core.methods import build_method
from ssl_core.methods.simclr import SimCLR, SimCLRConfig, other_view
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.types import GlobalRows, ViewBatch
from ssl_core.views.recipes import recipe

LANES, SIZE = 3, 4


@pytest.fixture(scope="module")
def method() -> SimCLR:
    """A small encoder at 8 px."""
    arguments = {"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
    encoder = build_encoder(ModelConfig(name="resnet18", image_size=8, stem="cifar", arguments=arguments))
    config = SimCLRConfig(temperature=0.3, projector=(16, 5))
    built = build_method("simclr", config, encoder=encoder, recipe=recipe("simclr", image_size=8), seed=0)
    assert isinstance(built, SimCLR)
    return built


def test_other_view_pairs_the_two_views_of_a_sample_within_its_lane() -> None:
    # two lanes of three samples: rows 0-2 and 3-5 are the first lane's two views
    assert other_view(12, 3).tolist() == [3, 4, 5, 0, 1, 2, 9, 10, 11, 6, 7, 8]


def test_loss_is_the_papers_over_all_lanes(method: SimCLR) -> None:
    z = torch.randn(LANES * 2 * SIZE, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    by_view = z.view(LANES, 2, SIZE, 5)
    expected = nt_xent(by_view[:, 0].reshape(-1, 5), by_view[:, 1].reshape(-1, 5), temperature=0.3)

    parts = [
        method.loss(GlobalRows(rows={"z": z}, num_lanes=LANES, own_lanes=own)) for own in (range(2), range(2, LANES))
    ]
    torch.testing.assert_close(parts[0] + parts[1], expected, rtol=1e-12, atol=0)


def test_embed_gives_a_row_for_each_lane_view_and_sample(method: SimCLR) -> None:
    images = torch.randn(LANES * 2 * SIZE, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    positions = torch.arange(LANES * SIZE)
    batch = ViewBatch(images={"views": images}, draws=positions, num_lanes=LANES, step=0, epoch=0)
    method.eval()  # without BatchNorm's statistics a row depends on its own image alone
    rows = method.embed(batch)["z"]
    method.train()
    assert rows.shape == (LANES * 2 * SIZE, 5)
    assert batch.views("views") == 2
    alone = ViewBatch(images={"views": images[5:7]}, draws=positions[:1], num_lanes=1, step=0, epoch=0)
    method.eval()
    torch.testing.assert_close(method.embed(alone)["z"], rows[5:7])
    method.train()


def test_initial_weights_follow_from_the_seed_alone() -> None:
    def projector(seed: int) -> torch.Tensor:
        encoder = build_encoder(ModelConfig(name="resnet18", arguments={"layers": [1, 1, 1, 1]}), seed=seed)
        made = build_method("simclr", SimCLRConfig(), encoder=encoder, recipe=recipe("simclr", image_size=8), seed=seed)
        assert isinstance(made, SimCLR)
        return next(made.projector.parameters()).detach()

    before = torch.random.get_rng_state()
    first = projector(1)
    torch.rand(3)
    assert torch.equal(first, projector(1))
    assert not torch.equal(first, projector(2))
    torch.random.set_rng_state(before)
