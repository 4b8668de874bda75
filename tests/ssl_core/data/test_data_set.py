"""Several manifests in one order: one line of positions, one normalisation, one digest; the rest is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssl_core.data.data_set import DataSet, load_data_set
from ssl_core.data.manifest import Manifest, Statistics
from ssl_core.data.reader import Reader
from ssl_core.data.shares import Share
from ssl_core.errors import UserError

MakeSet = Callable[..., Manifest]


@pytest.fixture
def two(make_set: MakeSet) -> tuple[Manifest, Manifest]:
    return make_set((5, 1, 4), name="a", bad=(7,)), make_set((3, 6), name="b", bad=(3,))


def join(*parts: Manifest, weights: tuple[float, ...] | None = None) -> DataSet:
    return DataSet(parts=parts, weights=weights or (1.0,) * len(parts))


def test_positions_run_through_the_manifests(two: tuple[Manifest, Manifest]) -> None:
    data = load_data_set([two[0].root, two[1].root])
    assert data == join(*two)
    reader, alone = Reader(data, max_bad=2), [Reader(part, max_bad=2) for part in two]
    assert reader.num_samples == data.num_samples == 19
    assert data.num_bytes == two[0].num_bytes + two[1].num_bytes
    assert data.shards == two[0].shards + two[1].shards
    assert data.shard_samples.tolist() == [5, 1, 4, 3, 6]
    assert data.labelled_samples == 19
    assert reader.labels().tolist() == [*alone[0].labels().tolist(), *alone[1].labels().tolist()]
    places = [(0, position) for position in range(10)] + [(1, position) for position in range(9)]
    for position, (part, inner) in enumerate(places):
        assert reader.key(position) == alone[part].key(inner)
        assert reader.encoded(position) == alone[part].encoded(inner)
        np.testing.assert_array_equal(reader.image(position), alone[part].image(inner))
    assert sorted(reader.quarantine.snapshot()) == [7, 13]


def test_a_set_of_one_is_its_manifest(two: tuple[Manifest, Manifest]) -> None:
    data = load_data_set(two[0].root)
    assert (data.digest, data.name, data.shards) == (two[0].digest, two[0].root, two[0].shards)
    assert load_data_set([two[0].root], [1.0]) == data
    assert data.normalisation(3) == two[0].normalisation(3)
    assert data.classes == two[0].classes


def test_the_digest_covers_manifests_order_and_weights(two: tuple[Manifest, Manifest]) -> None:
    a, b = two
    sets = [join(a), join(b), join(a, b), join(b, a), join(a, weights=(2.0,)), join(a, b, weights=(2.0, 1.0))]
    assert len({one.digest for one in sets}) == 6
    assert join(a, b, weights=(1.0, 1.0)).digest == join(a, b).digest
    assert join(a, b, weights=(2.0, 1.0)).unweighted == join(a, b)
    moved = replace(a, root="/elsewhere")
    assert join(moved, b).digest == join(a, b).digest


def test_shares_are_there_where_weights_are(two: tuple[Manifest, Manifest]) -> None:
    assert join(*two).shares == ()
    assert join(*two, weights=(2.0, 0.5)).shares == (Share(shards=3, weight=2.0), Share(shards=2, weight=0.5))


def test_normalisation_is_that_of_all_samples(make_set: MakeSet) -> None:
    data = join(make_set((4, 2), name="a"), make_set((3, 6), name="b"), weights=(5.0, 1.0))
    reader = Reader(data)
    images = [reader.image(position).reshape(-1, 3) / 255.0 for position in range(15)]
    mean, squares = np.mean([[image.mean(0), (image**2).mean(0)] for image in images], axis=0)
    np.testing.assert_allclose(data.normalisation(3), [mean, np.sqrt(squares - mean**2)], atol=1e-4)


def test_grey_and_colour_are_joined(two: tuple[Manifest, Manifest]) -> None:
    grey = replace(
        two[0], channels=1, statistics=Statistics(mean=(0.1,), deviation=(0.2,), grey_mean=0.1, grey_deviation=0.2)
    )
    colour = replace(
        two[1],
        shards=two[0].shards,
        statistics=Statistics(mean=(0.3, 0.1, 0.5), deviation=(0.2,) * 3, grey_mean=0.3, grey_deviation=0.4),
    )
    mean, std = join(grey, colour).normalisation(3)
    np.testing.assert_allclose(mean, [0.2, 0.1, 0.3])
    np.testing.assert_allclose(std, [np.sqrt(0.04 + 0.01), 0.2, np.sqrt(0.04 + 0.04)])
    mean, std = join(grey, colour).normalisation(1)
    np.testing.assert_allclose((*mean, *std), [0.2, np.sqrt((0.01 + 0.04 + 0.09 + 0.16) / 2 - 0.04)])


def test_classes_must_be_the_same_where_labels_are_asked_for(two: tuple[Manifest, Manifest]) -> None:
    assert join(*two).classes == ("0", "1", "2")
    with pytest.raises(UserError, match=r"/a and .*/b have different classes, .* probe.train"):
        _ = join(two[0], replace(two[1], classes=("2", "1", "0"))).classes


@pytest.mark.parametrize(
    ("names", "weights", "said"),
    [
        ([], None, r"data.train=\[\] names no data"),
        (["a", "b"], [1.0], "data.weights has 1 values for 2 data sets"),
        (["a"], [1.0, 2.0], "data.weights has 2 values for 1 data sets"),
        (["a", "b"], [1.0, 0.0], r"data.weights=\[1.0, 0.0\]: .* above 0"),
        (["a", "b"], [-1.0, 1.0], "above 0"),
        (["a", "b"], [1.0, 1001.0], "up to 1000"),
        (["a", "b", "a"], None, "the same data twice, .*a and .*a: name it once, .* data.weights"),
        (["a", "c"], None, "c: no such folder"),
    ],
)
def test_what_cannot_be_joined_is_said(
    two: tuple[Manifest, Manifest], tmp_path: Path, names: list[str], weights: list[float] | None, said: str
) -> None:
    assert [Path(one.root).name for one in two] == ["a", "b"]
    with pytest.raises(UserError, match=said):
        load_data_set([str(tmp_path / name) for name in names], weights)
