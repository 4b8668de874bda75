"""Subsets are stratified, keyed, and never leave a class without a label."""

import numpy as np
import pytest

from ssl_core.data.splits import holdout_split, label_subset
from ssl_core.errors import UserError

LABELS = np.asarray(([0] * 1000 + [1] * 300 + [2] * 7 + [4] * 1 + [-1] * 50) * 1, dtype=np.int64)[
    np.random.default_rng(3).permutation(1358)
]


def counts(positions: np.ndarray) -> list[int]:
    chosen = LABELS[positions]
    assert (chosen >= 0).all()
    return np.bincount(chosen, minlength=5).tolist()


def test_each_class_has_its_share_and_at_least_one() -> None:
    assert counts(label_subset(LABELS, 0.01, classes=5, seed=0, index=0)) == [10, 3, 1, 0, 1]
    assert counts(label_subset(LABELS, 0.1, classes=5, seed=0, index=0)) == [100, 30, 1, 0, 1]
    assert counts(label_subset(LABELS, 1.0, classes=5, seed=0, index=0)) == [1000, 300, 7, 0, 1]


def test_positions_are_distinct_ascending_and_keyed() -> None:
    subsets = [label_subset(LABELS, 0.1, classes=5, seed=seed, index=index) for seed in (0, 1) for index in (0, 1)]
    for subset in subsets:
        assert (np.diff(subset) > 0).all()
    assert len({tuple(subset.tolist()) for subset in subsets}) == 4
    np.testing.assert_array_equal(subsets[1], label_subset(LABELS, 0.1, classes=5, seed=0, index=1))


def test_the_first_members_of_a_subset_are_pinned() -> None:
    """Which samples a seed picks is part of a reported number."""
    labels = np.arange(40) % 2
    assert label_subset(labels, 0.1, classes=2, seed=0, index=0).tolist() == [6, 21, 37, 38]


def test_a_larger_share_contains_the_smaller_one() -> None:
    small, large = (set(label_subset(LABELS, share, classes=5, seed=0, index=2).tolist()) for share in (0.01, 0.1))
    assert small < large


def test_a_holdout_cuts_every_class() -> None:
    kept, held = holdout_split(LABELS, 0.2, seed=0)
    assert counts(held) == [200, 60, 1, 0, 0]
    assert counts(kept) == [800, 240, 6, 0, 1]
    assert not set(kept.tolist()) & set(held.tolist())
    other = holdout_split(LABELS, 0.2, seed=0, purpose="pack.split")[1]
    assert other.tolist() != held.tolist()


def test_a_holdout_of_nearly_all_leaves_one() -> None:
    kept, held = holdout_split(np.asarray([0, 0, 0]), 0.99, seed=0)
    assert (len(kept), len(held)) == (1, 2)


def test_unlabelled_data_gives_nothing() -> None:
    assert not len(label_subset(np.full(4, -1), 0.5, classes=0, seed=0, index=0))
    assert [len(part) for part in holdout_split(np.full(4, -1), 0.5, seed=0)] == [0, 0]


def test_what_cannot_be_meant_is_refused() -> None:
    for fraction in (0.0, -1.0, 1.1):
        with pytest.raises(UserError, match="label share"):
            label_subset(LABELS, fraction, classes=5, seed=0, index=0)
    for fraction in (0.0, 1.0):
        with pytest.raises(UserError, match="held out"):
            holdout_split(LABELS, fraction, seed=0)
    with pytest.raises(UserError, match="label 4 with 3 classes"):
        label_subset(LABELS, 0.1, classes=3, seed=0, index=0)
