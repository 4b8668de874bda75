"""A survey of shards, one after the other, finds what a look at all of them at once would find."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from ssl_core import rng
from ssl_core.data.manifest import Manifest
from ssl_core.data.reader import Reader
from ssl_core.data.survey import ShardScan, Survey, scan_shard

MakeSet = Callable[..., Manifest]


def surveyed(manifest: Manifest, images: int) -> Survey:
    survey = Survey(images=images)
    for shard in manifest.shards:
        path = Path(manifest.root) / shard.name
        survey.take_in(scan_shard(path, shard.name), path)
    return survey


@pytest.mark.parametrize("shards", [(9,), (4, 1, 3, 1), (1,) * 9])
def test_the_images_with_the_smallest_keys_make_the_statistics(shards: tuple[int, ...], make_set: MakeSet) -> None:
    manifest = make_set(shards)
    order = np.argsort(rng.key(0, "manifest.statistics", np.arange(9)))
    reader = Reader(manifest)
    means = [reader.image(position).reshape(-1, 3).mean(0) / 255 for position in order[:3].tolist()]
    few = surveyed(manifest, 3).manifest(manifest.root, manifest.classes)
    np.testing.assert_allclose(few.mean, np.mean(means, axis=0), atol=6e-5)
    assert few.statistics != surveyed(manifest, 9).manifest(manifest.root, ()).statistics == manifest.statistics


def test_few_images_are_decoded(make_set: MakeSet) -> None:
    """Those that are among the smallest when they come by: about k (1 + ln(n / k)) of n."""
    scans = surveyed(make_set((10,) * 12), 2).scans
    assert sum(len(scan.moments) for scan in scans) < 20


def test_a_survey_that_is_continued_from_records_is_the_same(make_set: MakeSet) -> None:
    manifest = make_set((4, 1, 3, 1))
    whole = surveyed(manifest, 3)
    records = [json.loads(json.dumps(asdict(scan))) for scan in whole.scans]
    assert [ShardScan.from_json(record) for record in records] == whole.scans
    again = Survey(images=3)
    for record in records[:2]:
        again.remember(ShardScan.from_json(record))
    for shard in manifest.shards[2:]:
        path = Path(manifest.root) / shard.name
        again.take_in(scan_shard(path, shard.name), path)
    assert again.manifest(manifest.root, ("x",)) == whole.manifest(manifest.root, ("x",))
