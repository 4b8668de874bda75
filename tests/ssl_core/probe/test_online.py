"""The k-NN curve while training is the probe's own k-NN, on any number of workers, and changes nothing."""

import numpy as np
import pytest
import torch
from conftest import MakeSet
from torch import nn

from ssl_core.collectives import Collectives
from ssl_core.errors import UserError
from ssl_core.probe.features import ImageInput, RawPixels
from ssl_core.probe.labelled import LabelledSet
from ssl_core.probe.online import OnlineKNN
from ssl_core.probe.report import ProbeConfig, run_probe

INPUT = ImageInput(size=8, mean=(0.5,) * 3, std=(0.25,) * 3)


class Part(Collectives):
    """Worker `rank` of several that take turns: what the others made is known already."""

    def gather_rows(self, x: torch.Tensor, counts: object) -> torch.Tensor:
        assert isinstance(counts, list)
        assert counts[self.rank] == len(x)
        return torch.cat(
            [x.new_zeros(count, x.shape[1]) if rank != self.rank else x for rank, count in enumerate(counts)]
        )


def online(
    train: LabelledSet,
    val: LabelledSet,
    collectives: Collectives | None = None,
    *,
    max_train: int = 1000,
    max_val: int = 1000,
) -> OnlineKNN:
    return OnlineKNN(
        train,
        val,
        max_train=max_train,
        max_val=max_val,
        seed=0,
        image_input=INPUT,
        collectives=collectives or Collectives(),
        device=torch.device("cpu"),
    )


def test_on_all_samples_it_is_the_probes_number(make_set: MakeSet) -> None:
    train, val = make_set(90, seed=1, name="train"), make_set(60, seed=2, name="val")
    report = run_probe({"raw": RawPixels()}, train, val, ProbeConfig(fractions=()), image_input=INPUT)
    assert online(train, val)(RawPixels()) == {"knn_online": report.rows["raw"]["knn20"].value}


def test_limits_take_the_probes_keyed_sample(make_set: MakeSet) -> None:
    train, val = make_set(90, seed=1, name="train"), make_set(60, seed=2, name="val")
    config = ProbeConfig(fractions=(), max_train=40, max_val=30)
    report = run_probe({"raw": RawPixels()}, train, val, config, image_input=INPUT)
    assert online(train, val, max_train=40, max_val=30)(RawPixels()) == {
        "knn_online": report.rows["raw"]["knn20"].value
    }


class Counting(nn.Module):
    """Raw pixels, and how many images were encoded."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        self.images += len(x)
        return x.flatten(1)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_worker_encodes_an_equal_part(make_set: MakeSet, world: int) -> None:
    train, val = make_set(61, seed=1, name="train"), make_set(31, seed=2, name="val")
    counts: list[int] = []
    for rank in range(world):
        encoder = Counting().train()
        online(train, val, Part(rank=rank, world=world))(encoder)
        counts.append(encoder.images)
        assert encoder.training
        assert encoder.norm.num_batches_tracked == 0
    assert sum(counts) == 61 + 31
    assert max(counts) - min(counts) <= 2


def test_fewer_samples_than_workers_are_encoded_by_each(make_set: MakeSet) -> None:
    train, val = make_set(30, seed=1, name="train"), make_set(2, seed=2, name="val")
    encoder = Counting()
    online(train, val, Part(rank=2, world=3))(encoder)
    assert encoder.images == 10 + 2


def test_data_without_labels_is_refused(make_set: MakeSet) -> None:
    bare = make_set(5, name="bare", labels=np.full(5, -1).tolist())
    with pytest.raises(UserError, match="bare has no labels"):
        online(bare, make_set(5, name="val"))
