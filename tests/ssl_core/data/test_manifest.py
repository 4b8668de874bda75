"""A manifest is read back as it was written, and is refused in words where it is missing, foreign, old or changed."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ssl_core.data.manifest import Manifest, load_manifest, save_manifest
from ssl_core.errors import UserError

MakeSet = Callable[..., Manifest]


def test_it_is_read_back_as_it_was_written(make_set: MakeSet) -> None:
    manifest = make_set((5, 4))
    assert manifest.num_samples == 9
    assert manifest.shard_samples.tolist() == [5, 4]
    assert manifest.labelled
    assert manifest.classes == ("0", "1", "2")
    assert (manifest.width, manifest.height, manifest.channels) == ((16, 16), (12, 12), 3)
    again = load_manifest(manifest.root)
    assert again == manifest
    assert again.digest == manifest.digest
    assert load_manifest(Path(manifest.root) / "manifest.json") == manifest
    assert load_manifest(f"file://{manifest.root}") == manifest


def test_the_digest_covers_content_and_not_the_place(make_set: MakeSet) -> None:
    manifest = make_set()
    shard = manifest.shards[0]
    assert replace(manifest, root="/elsewhere").digest == manifest.digest
    others = [
        replace(manifest, shards=manifest.shards[::-1]),
        replace(manifest, shards=(replace(shard, sha256="0" * 64), manifest.shards[1])),
        replace(manifest, shards=(replace(shard, samples=1), manifest.shards[1])),
        replace(manifest, classes=("a", "b", "c")),
        replace(manifest, statistics=replace(manifest.statistics, mean=(0.1, 0.2, 0.3))),
    ]
    assert len({manifest.digest, *(other.digest for other in others)}) == 6


def test_manifest_and_shards_can_be_moved_together(make_set: MakeSet, tmp_path: Path) -> None:
    manifest = make_set(name="shards")
    (tmp_path / "index").mkdir()
    save_manifest(manifest, tmp_path / "index")
    (tmp_path / "moved").mkdir()
    for name in ("shards", "index"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    assert load_manifest(tmp_path / "moved/index").root == str(tmp_path / "moved/shards")
    assert load_manifest(tmp_path / "moved/shards").root == str(tmp_path / "moved/shards")


def test_shards_far_away_are_named_by_their_whole_path(make_set: MakeSet, tmp_path: Path) -> None:
    manifest = make_set()
    far = tmp_path / "a/b/c"
    far.mkdir(parents=True)
    save_manifest(manifest, far)
    assert json.loads((far / "manifest.json").read_text())["root"] == manifest.root
    assert load_manifest(far).root == manifest.root


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2, this program reads version 1.*pack index="),
        ({"format": "other"}, "not a manifest of shards"),
        ({"classes": ["x", "y", "z"]}, "changed by hand"),
        ({"labelled_samples": None}, "damaged"),
        ({"shards": [{"name": "a"}]}, "damaged"),
        ({"shards": [{"name": "../a", "samples": 1, "bytes": 1, "sha256": ""}]}, "outside its folder"),
        ({"shards": [{"name": "/a", "samples": 1, "bytes": 1, "sha256": ""}]}, "outside its folder"),
    ],
)
def test_a_changed_manifest_is_refused(change: dict[str, object], words: str, make_set: MakeSet) -> None:
    path = Path(make_set().root) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=words) as caught:
        load_manifest(path.parent)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_file_that_is_no_manifest_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        load_manifest(tmp_path)


def test_what_is_missing_is_said_with_what_to_do(make_set: MakeSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        load_manifest(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no manifest\.json: pack images first"):
        load_manifest(tmp_path / "empty")
    (tmp_path / "sets").mkdir()
    manifest = make_set(name="sets/train")
    with pytest.raises(UserError, match=f"name one of the data sets in it: {manifest.root}"):
        load_manifest(tmp_path / "sets")
    (Path(manifest.root) / "manifest.json").unlink()
    with pytest.raises(UserError, match=f"run python -m pipelines.pack index={manifest.root}"):
        load_manifest(manifest.root)
    with pytest.raises(UserError, match="pipe:"):
        load_manifest("pipe:cat x")


def test_normalisation_for_other_channels(make_set: MakeSet) -> None:
    manifest = make_set()
    grey = ((manifest.statistics.grey_mean,), (manifest.statistics.grey_deviation,))
    assert manifest.normalisation(3) == (manifest.mean, manifest.std)
    assert manifest.normalisation(1) == grey
    only_grey = replace(manifest, statistics=replace(manifest.statistics, mean=(0.4,), deviation=(0.2,)))
    assert only_grey.normalisation(3) == ((0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    with pytest.raises(UserError, match="4 channels"):
        manifest.normalisation(4)
