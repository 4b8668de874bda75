"""The whole probe: what it measures, that fitting never sees validation labels, and what its record says."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_core.errors import UserError
from ssl_core.probe import labelled, linear, report
from ssl_core.probe.features import ImageInput, RawPixels
from ssl_core.probe.labelled import LabelledSet
from ssl_core.probe.linear import LinearClassifier
from ssl_core.probe.measure import Measure
from ssl_core.probe.report import PRETRAINED, RAW_PIXELS, ProbeConfig, ProbeReport, run_probe

MakeSet = Callable[..., LabelledSet]

INPUT = ImageInput(size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
QUICK = ProbeConfig(fractions=(0.1,), subsets=3)
MEASURES = ["knn20", "knn200", "linear", "linear_1pct", "linear_10pct"]


class Projection(nn.Module):
    """A linear "encoder" that keeps the pixels' information."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(192, 96, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight


class Nothing(nn.Module):
    """An encoder that has forgotten its input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.randn(len(x), 24, generator=torch.Generator().manual_seed(len(x)))


def quick(train: LabelledSet, val: LabelledSet, encoder: nn.Module | None = None) -> ProbeReport:
    return run_probe({PRETRAINED: encoder or RawPixels()}, train, val, QUICK, image_input=INPUT)


def test_every_encoder_gets_every_number(make_set: MakeSet, untouched_generators: None) -> None:
    encoders = {RAW_PIXELS: RawPixels(), "blind": Nothing(), PRETRAINED: Projection()}
    train, val = make_set(300, seed=1, name="train"), make_set(150, seed=2, name="val")
    said: list[str] = []
    found = run_probe(encoders, train, val, ProbeConfig(subsets=4), image_input=INPUT, say=said.append)
    assert list(found.rows) == list(encoders)
    assert [list(row) for row in found.rows.values()] == [MEASURES] * 3
    assert len(said) == 3
    assert all(0 < one.error < 0.1 for row in found.rows.values() for one in row.values())
    for name in MEASURES:
        assert abs(found.rows["blind"][name].value - 1 / 3) < 0.15
    for encoder in (RAW_PIXELS, PRETRAINED):
        assert found.rows[encoder]["knn20"].value > 0.55
        assert found.rows[encoder]["linear"].value > 0.55


def test_equal_encoders_get_equal_numbers_whatever_they_are_called(make_set: MakeSet) -> None:
    train, val = make_set(200, seed=1), make_set(100, seed=2)
    encoders = {"random encoder": Projection(), PRETRAINED: Projection()}
    rows = run_probe(encoders, train, val, QUICK, image_input=INPUT).rows
    assert rows["random encoder"] == rows[PRETRAINED]


class Fits:
    """Notes every classifier that is fitted, and the labels that k-NN votes with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.classifiers: list[LinearClassifier] = []
        self.voters: list[Tensor] = []
        fit, predict = linear.LinearProbe._fit, report.knn.predict  # pyright: ignore[reportPrivateUsage] (to spy on it)

        def noted_fit(probe: linear.LinearProbe, x: Tensor, y: Tensor) -> LinearClassifier:
            self.classifiers.append(fit(probe, x, y))
            return self.classifiers[-1]

        def noted_predict(similarity: Tensor, index: Tensor, bank_y: Tensor, **options: Any) -> Tensor:
            self.voters.append(predict(similarity, index, bank_y, **options))
            return self.voters[-1]

        monkeypatch.setattr(linear.LinearProbe, "_fit", noted_fit)
        monkeypatch.setattr(report.knn, "predict", noted_predict)

    def taken(self) -> tuple[list[LinearClassifier], list[Tensor]]:
        result = self.classifiers, self.voters
        self.classifiers, self.voters = [], []
        return result


def assert_same_fits(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probe twice, the second time with other validation labels: all that is fitted is the same to the bit."""
    fits = Fits(monkeypatch)
    train, val = make_set(150, seed=1), make_set(90, seed=2)
    first_report = quick(train, val)
    first = fits.taken()
    wrong = ((val.images.labels() + 1 + np.arange(90) % 2) % 3).tolist()
    second_report = quick(train, make_set(90, seed=2, labels=wrong))
    second = fits.taken()
    assert first_report.rows != second_report.rows
    assert len(first[0]) == len(second[0]) == 1 + QUICK.subsets
    for one, other in zip(first[0], second[0], strict=True):
        assert one.decay == other.decay
        assert torch.equal(one.weights, other.weights)
        assert torch.equal(one.mean, other.mean)
    assert all(torch.equal(one, other) for one, other in zip(first[1], second[1], strict=True))


def test_fitting_does_not_see_validation_labels(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_same_fits(make_set, monkeypatch)


def test_a_planted_leak_is_seen(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard above goes red once validation labels choose the decay's held-out rows or train the classifier."""
    choose, split = report.choose_samples, linear.holdout_split
    leaked: list[NDArray[np.int64]] = []

    def leaking_choice(*sets: LabelledSet, **options: Any) -> labelled.ProbeSamples:
        samples = choose(*sets, **options)
        leaked.append(samples.val_y)
        return samples

    def leaking_split(
        labels: NDArray[np.int64], fraction: float, *, seed: int, purpose: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        kept, held = split(labels, fraction, seed=seed, purpose=purpose)
        return kept, held[leaked[-1][: len(held)] != 0] if len(held) <= 90 else held

    with monkeypatch.context() as patch:
        patch.setattr(report, "choose_samples", leaking_choice)
        patch.setattr(linear, "holdout_split", leaking_split)
        with pytest.raises(AssertionError):
            assert_same_fits(make_set, patch)

    def training_on_validation(*sets: LabelledSet, **options: Any) -> labelled.ProbeSamples:
        samples = choose(*sets, **options)
        mixed = samples.train_y.copy()
        mixed[:10] = samples.val_y[:10]
        return replace(samples, train_y=mixed)

    with monkeypatch.context() as patch:
        patch.setattr(report, "choose_samples", training_on_validation)
        with pytest.raises(AssertionError):
            assert_same_fits(make_set, patch)


def test_the_same_probe_gives_the_same_report(make_set: MakeSet) -> None:
    train, val = make_set(150, seed=1), make_set(90, seed=2)
    assert quick(train, val) == quick(train, val)


def test_a_record_comes_back_as_it_was(make_set: MakeSet) -> None:
    found = quick(make_set(150, seed=1), make_set(90, seed=2))
    content = json.loads(json.dumps(found.to_dict()))
    assert ProbeReport.from_dict(content) == found
    assert set(content["rows"][PRETRAINED]["linear"]) == {"value", "error"}
    assert content["data_digest"] == found.data_digest
    for damaged in ({}, content | {"rows": 3}, content | {"format": 99}):
        with pytest.raises(UserError, match="probe again"):
            ProbeReport.from_dict(damaged)


def test_metrics_are_flat() -> None:
    found = ProbeReport(rows={PRETRAINED: {"linear": Measure(value=0.5, error=0.1)}}, protocol=(), data_digest="d")
    assert found.metrics() == {"probe.linear": 0.5, "probe.linear.error": 0.1}


def test_the_table_says_all_that_is_needed_to_compare(make_set: MakeSet) -> None:
    config = replace(QUICK, knn=((7, 0.5), (5000, 0.1)))
    found = run_probe({PRETRAINED: RawPixels()}, make_set(150), make_set(90, seed=2), config, image_input=INPUT)
    lines = found.table().splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "accuracy in %",
        "k-NN 7",
        "k-NN 5000",
        "linear",
        "linear, 10 % of labels",
    ]
    assert str(found.rows[PRETRAINED]["linear"]) in lines[2]
    assert len({len(line) for line in lines[:3]}) == 1
    text = " ".join(lines[3:])
    for fact in (
        "± is one standard error",
        "150 labelled training images of 3 classes (k is at most that)",
        "validation: 90 images",
        "cosine",
        "k = 7 with T = 0.5",
        "pooled output",
        "8 px",
        "192 numbers",
        "mean of 3 seeded subsets",
    ):
        assert fact in text


def test_the_rich_table_shows_the_same(make_set: MakeSet) -> None:
    from rich.console import Console

    found = quick(make_set(150), make_set(90, seed=2))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(found.rich_table())
    shown = console.export_text()
    assert all(str(one) in shown for one in found.rows[PRETRAINED].values())
    assert "± is one standard error" in shown


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"knn": ((0, 0.1),)}, "k is at least 1"),
        ({"knn": ((5, 0.0),)}, "temperature above 0"),
        ({"knn": ((5, 0.1), (5, 0.2))}, "each k once"),
        ({"fractions": (1.5,)}, "between 0 and 1"),
        ({"subsets": 0}, r"probe\.subsets=0"),
        ({"max_train": 0}, r"probe\.max_train=0"),
    ],
)
def test_what_cannot_be_measured_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ProbeConfig(**values)


def test_data_without_labels_is_refused_before_anything_is_encoded(make_set: MakeSet) -> None:
    with pytest.raises(UserError, match="holiday photos has no labels"):
        quick(make_set(10, labels=[-1] * 10, name="holiday photos"), make_set(10, seed=2))
