"""Accuracies and how far off they may be."""

import math

import pytest
import torch

from ssl_core.probe.measure import Measure, score


def test_one_classifier_has_the_binomial_error() -> None:
    measure = score(torch.tensor([[0, 1, 2, 3]]), torch.tensor([0, 1, 2, 0]))
    assert measure.value == 0.75
    assert measure.error == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_several_classifiers_add_their_own_spread() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    predictions = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]])
    measure = score(predictions, labels)
    over_queries = torch.tensor([1, 1, 0.5, 0.5]).var(unbiased=False).item() / 4
    over_classifiers = (0.25**2 + 0.25**2) / 1 / 2
    assert measure.value == 0.75
    assert measure.error == pytest.approx(math.sqrt(over_queries + over_classifiers))


def test_the_error_is_what_repetition_shows() -> None:
    """Queries of random difficulty, classifiers of random skill: many such experiments against the stated error."""
    generator = torch.Generator().manual_seed(0)
    values: list[float] = []
    errors: list[float] = []
    for _ in range(400):
        ease = torch.randn(300, generator=generator)
        skill = 0.5 * torch.randn(10, 1, generator=generator)
        wrong = (ease + skill + torch.randn(10, 300, generator=generator) < 0).long()
        measure = score(wrong, torch.zeros(300, dtype=torch.int64))
        values.append(measure.value)
        errors.append(measure.error)
    stated, seen = sum(errors) / len(errors), float(torch.tensor(values).std())
    assert 0.9 < stated / seen < 1.1


def test_it_reads_in_percent() -> None:
    assert str(Measure(value=0.45463, error=0.00557)) == "45.5 ± 0.6"
