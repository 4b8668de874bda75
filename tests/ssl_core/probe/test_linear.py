"""The linear probe: its decay comes from its own labels, features are standardised, few labels are enough to fit."""

import pytest
import torch
from torch import Tensor

from ssl_core.probe import linear
from ssl_core.probe.features import Features
from ssl_core.probe.linear import DECAYS, FEW_LABELS_DECAY, LinearProbe


def drawn(num_rows: int = 600, num_features: int = 20, *, signal: float = 1.0, seed: int = 0) -> Features:
    """Three classes in Gaussian noise; feature j has the scale 10^(j mod 5) and an offset."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, num_features, generator=torch.Generator().manual_seed(99)) * signal
    y = torch.arange(num_rows) % 3
    x = centres[y] + torch.randn(num_rows, num_features, generator=generator)
    return Features(x=x * 10.0 ** (torch.arange(num_features) % 5) + 7, y=y)


def accuracy(predicted: Tensor, features: Features) -> float:
    return float((predicted == features.y).double().mean())


def test_it_learns_and_scales_do_not_matter() -> None:
    train, val = drawn(signal=0.5), drawn(seed=1, signal=0.5)
    classifier = LinearProbe(train, num_classes=3, seed=0).fit()
    assert accuracy(classifier.predict(val.x), val) > 0.85
    scale = 2.0 ** torch.arange(-10, 10)
    rescaled = LinearProbe(Features(x=train.x * scale, y=train.y), num_classes=3, seed=0).fit()
    assert torch.equal(rescaled.predict(val.x * scale), classifier.predict(val.x))


def test_noise_is_given_more_decay_than_signal() -> None:
    random = drawn(signal=0.0)
    noisy = LinearProbe(random, num_classes=3, seed=0).fit().decay
    clear = LinearProbe(drawn(signal=1.5), num_classes=3, seed=0).fit().decay
    assert clear < 0.1 < noisy


def test_the_walk_stops_where_the_held_out_loss_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[float] = []
    fit = linear.fit_softmax

    def noted(x_ND: Tensor, y_N: Tensor, **options: float) -> Tensor:
        walked.append(options["decay"])
        return fit(x_ND, y_N, **options)  # pyright: ignore[reportArgumentType] (options of several types)

    monkeypatch.setattr(linear, "fit_softmax", noted)
    chosen = LinearProbe(drawn(signal=0.3), num_classes=3, seed=0).fit().decay
    assert walked[:-1] == list(DECAYS[: len(walked) - 1])
    assert DECAYS.index(chosen) == len(walked) - 3  # one more that was worse, then the fit of all labels
    assert walked[-1] == chosen


def test_features_that_do_not_vary_are_ignored() -> None:
    train, val = drawn(), drawn(seed=1)
    reference = LinearProbe(train, num_classes=3, seed=0).fit().predict(val.x)
    for constant in (0.0, 0.1, 12345.678):
        more = [torch.cat([one.x, torch.full((len(one.x), 1), constant)], 1) for one in (train, val)]
        more[1][:, -1] += 1000  # and what they are elsewhere does not matter
        classifier = LinearProbe(Features(x=more[0], y=train.y), num_classes=3, seed=0).fit()
        assert torch.equal(classifier.predict(more[1]), reference)


def test_subsets_differ_are_repeatable_and_weaker_than_all() -> None:
    train, val = drawn(900, signal=0.3), drawn(3000, seed=1, signal=0.3)
    probe = LinearProbe(train, num_classes=3, seed=0)
    first, again, second = (probe.fit_subset(0.05, index) for index in (0, 0, 1))
    assert torch.equal(first.weights, again.weights)
    assert not torch.equal(first.weights, second.weights)
    few = sum(accuracy(probe.fit_subset(0.05, index).predict(val.x), val) for index in range(5)) / 5
    assert 0.4 < few < accuracy(probe.fit().predict(val.x), val)
    other_seed = LinearProbe(train, num_classes=3, seed=1).fit_subset(0.05, 0)
    assert not torch.equal(first.weights, other_seed.weights)


def test_a_subset_sees_its_own_labels_alone() -> None:
    train = drawn(900)
    chosen = linear.label_subset(train.y.numpy(), 0.05, classes=3, seed=0, index=0)
    others = torch.ones(900, dtype=torch.bool)
    others[torch.from_numpy(chosen)] = False
    spoilt = train.y.clone()
    spoilt[others] = spoilt[others].roll(1)  # the class counts, and so the choice of rows, must stay
    assert sorted(spoilt[others].tolist()) == sorted(train.y[others].tolist())
    reference = LinearProbe(train, num_classes=3, seed=0).fit_subset(0.05, 0)
    probe = LinearProbe(Features(x=train.x, y=spoilt), num_classes=3, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "label_subset", lambda *_, **__: chosen)  # pyright: ignore[reportUnknownLambdaType] (a stand-in of any arguments)
        found = probe.fit_subset(0.05, 0)
    assert torch.equal(found.weights, reference.weights)
    assert found.decay == reference.decay


@pytest.mark.parametrize(("num_rows", "fixed"), [(9, True), (60, False)])
def test_a_handful_of_labels_is_fitted_with_a_fixed_decay(num_rows: int, fixed: bool) -> None:
    train, val = drawn(num_rows, signal=2.0), drawn(seed=1, signal=2.0)
    classifier = LinearProbe(train, num_classes=3, seed=0).fit()
    assert (classifier.decay == FEW_LABELS_DECAY) is fixed
    assert accuracy(classifier.predict(val.x), val) > 0.9


def test_one_label_a_class_is_enough() -> None:
    probe = LinearProbe(drawn(30, signal=2.0), num_classes=3, seed=0)
    val = drawn(seed=1, signal=2.0)
    assert accuracy(probe.fit_subset(0.001, 0).predict(val.x), val) > 0.6


def test_a_class_without_labels_is_never_predicted() -> None:
    train = drawn()
    classifier = LinearProbe(train, num_classes=5, seed=0).fit()
    assert classifier.weights.shape == (5, 21)
    assert set(classifier.predict(train.x).tolist()) <= {0, 1, 2}
