"""Measures of features against their definitions, and a run that collapses and says so."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_engine import Linear, make_engine
from torch import Tensor, nn

from ssl_core.nn.backbones import Encoder
from ssl_core.train.health import CollapseWatch, measure
from ssl_core.train.records import join_parts
from ssl_core.types import GlobalRows


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_measures_are_what_their_papers_define() -> None:
    features = draws(2, 7, 4)
    found = measure(features)

    unit = (features / features.norm(dim=2, keepdim=True)).double().numpy()
    assert found["feature_std"] == pytest.approx(unit.reshape(14, 4).std(0).mean() * math.sqrt(4), rel=1e-5)
    singular = np.linalg.svd(features.reshape(14, 4).numpy(), compute_uv=False)
    shares = singular / singular.sum()
    assert found["effective_rank"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    near = [math.exp(-2 * ((x - y) ** 2).sum()) for x, y in itertools.combinations(unit[0], 2)]
    assert found["uniformity"] == pytest.approx(math.log(sum(near) / len(near)), rel=1e-5)
    assert found["alignment"] == pytest.approx(((unit[0] - unit[1]) ** 2).sum(1).mean(), rel=1e-5)


def test_directions_and_points() -> None:
    axes = torch.eye(6)[None]
    assert measure(axes)["effective_rank"] == pytest.approx(6)
    assert "alignment" not in measure(axes)
    points = measure(torch.ones(2, 6, 5))
    assert points["feature_std"] == pytest.approx(0, abs=1e-12)
    assert points["effective_rank"] == pytest.approx(1)
    assert points["alignment"] == points["uniformity"] == pytest.approx(0)
    assert measure(torch.zeros(1, 6, 5))["effective_rank"] == pytest.approx(1)


def test_a_collapse_is_told_once() -> None:
    watch, well, ill = CollapseWatch(), measure(draws(1, 30, 8)), measure(torch.ones(1, 30, 8))
    said = [watch.complaint(values) for values in (well, ill, ill, well, ill)]
    assert [text is not None for text in said] == [False, True, False, False, True]


class Pulled(Linear):
    """Nothing keeps its features apart: all images are drawn to one point, as hard as `pull`."""

    def __init__(self, pull: float) -> None:
        super().__init__()
        self.pull = pull
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), 3)

    def loss(self, rows: GlobalRows) -> Tensor:
        z = rows.rows["z"]
        return self.pull * ((z[rows.own("z")] - 1) ** 2).sum() / len(z)


@pytest.mark.parametrize(("pull", "collapses"), [(1.0, True), (0.0, False)])
def test_a_run_that_collapses_says_so(tmp_path: Path, pull: float, collapses: bool) -> None:
    engine = make_engine(tmp_path, method=Pulled(pull), total_steps=60)
    engine.train(total_steps=60, health_every=5)
    lines = [line for line in join_parts(tmp_path, "metrics") if "effective_rank" in line]
    assert [line["step"] for line in lines] == list(range(5, 61, 5))
    said = [event["event"] for event in join_parts(tmp_path, "events")]
    assert any("the features collapse" in text for text in said) is collapses
