"""Which samples: those with labels, matched by class name, the same ones for the same seed."""

from collections.abc import Callable

import numpy as np
import pytest

from ssl_core.errors import UserError
from ssl_core.probe.labelled import LabelledSet, ProbeSamples, choose_samples, hold_out

MakeSet = Callable[..., LabelledSet]


def choose(
    train: LabelledSet, val: LabelledSet, *, max_train: int | None = None, max_val: int | None = None, seed: int = 0
) -> ProbeSamples:
    return choose_samples(train, val, max_train=max_train, max_val=max_val, seed=seed)


def test_samples_without_a_label_are_left_out(make_set: MakeSet) -> None:
    samples = choose(make_set(5, labels=[0, -1, 1, 2, -1]), make_set(3, labels=[-1, 2, 2]))
    assert samples.train_positions.tolist() == [0, 2, 3]
    assert samples.train_y.tolist() == [0, 1, 2]
    assert samples.val_positions.tolist() == [1, 2]
    assert samples.num_classes == 3


def test_validation_labels_are_matched_by_class_name(make_set: MakeSet) -> None:
    train = make_set(3, labels=[0, 1, 2], classes=("ant", "bee", "cat"))
    val = make_set(3, labels=[0, 1, -1], classes=("ant", "cat"))
    assert choose(train, val).val_y.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("train_labels", "val_labels", "val_classes", "message"),
    [
        ([-1, -1, -1], [0, 1, 2], ("ant", "bee", "cat"), "bank has no labels"),
        ([0, 1, 2], [-1, -1, -1], ("ant", "bee", "cat"), "judge has no labels"),
        ([1, 1, -1], [1, 1, 1], ("ant", "bee", "cat"), "all labels of bank are the same class"),
        ([0, 1, 1], [0, 1, 2], ("ant", "bee", "cat"), "judge has samples of class cat, of which bank has none"),
        ([0, 1, 2], [0, 1, 3], ("ant", "bee", "cat", "dog"), "judge has samples of class dog, which bank does not"),
    ],
)
def test_labels_that_cannot_be_probed_are_refused_in_words(
    make_set: MakeSet, train_labels: list[int], val_labels: list[int], val_classes: tuple[str, ...], message: str
) -> None:
    train = make_set(3, labels=train_labels, name="bank")
    val = make_set(3, labels=val_labels, name="judge", classes=val_classes)
    with pytest.raises(UserError, match=message) as caught:
        choose(train, val)
    assert "\n" not in str(caught.value)


def test_a_class_without_samples_in_either_set_does_no_harm(make_set: MakeSet) -> None:
    samples = choose(make_set(3, labels=[0, 2, 2]), make_set(2, labels=[2, 0], classes=("ant", "bee", "cat", "dog")))
    assert samples.val_y.tolist() == [2, 0]


def test_limits_take_a_keyed_sample(make_set: MakeSet) -> None:
    train, val = make_set(200, name="a"), make_set(100, name="b")
    samples = choose(train, val, max_train=30, max_val=20)
    assert len(np.unique(samples.train_positions)) == 30
    assert len(np.unique(samples.val_positions)) == 20
    assert (np.diff(samples.train_positions) > 0).all()
    np.testing.assert_array_equal(samples.train_y, train.images.labels()[samples.train_positions])
    again, other = choose(train, val, max_train=30, max_val=20), choose(train, val, max_train=30, max_val=20, seed=1)
    np.testing.assert_array_equal(samples.train_positions, again.train_positions)
    assert samples.train_positions.tolist() != other.train_positions.tolist()
    assert len(choose(train, val, max_train=999).train_y) == 200


def test_the_digest_names_the_data(make_set: MakeSet) -> None:
    train, val = make_set(name="a"), make_set(name="b")
    digest = choose(train, val).digest
    assert digest == choose(train, val, max_train=120, seed=5).digest  # all samples either way
    others = [
        choose(make_set(name="c"), val),
        choose(train, make_set(name="c")),
        choose(train, val, max_train=50),
        choose(train, val, max_val=50),
        choose(train, val, max_val=50, seed=1),
    ]
    assert len({digest, *(one.digest for one in others)}) == 6


def test_what_is_held_out_is_cut_class_by_class_and_shares_nothing_with_what_is_kept(make_set: MakeSet) -> None:
    whole = make_set(43, labels=[0, 1] * 20 + [2, -1, -1])
    kept, held = hold_out(whole, 0.25)
    samples = choose(kept, held)
    assert not set(samples.train_positions) & set(samples.val_positions)
    assert sorted([*samples.train_positions, *samples.val_positions]) == list(range(41))
    assert np.bincount(samples.val_y).tolist() == [5, 5]  # a class of one stays in the bank
    assert samples.train_y.tolist().count(2) == 1


def test_what_is_held_out_does_not_depend_on_the_seed_of_a_run_but_is_not_the_whole_set(make_set: MakeSet) -> None:
    first, again = (choose(*hold_out(make_set(40), 0.25), seed=seed) for seed in (0, 1))
    assert first.digest == again.digest
    assert first.digest != choose(*hold_out(make_set(40), 0.5)).digest
