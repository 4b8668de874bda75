"""Packing loses nothing, gives the same bytes for the same input, and leaves all or nothing."""

import os
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from webdataset.compat import WebDataset

from ssl_core.data.decode import decode
from ssl_core.data.integrity import verify_shards
from ssl_core.data.manifest import Manifest, load_manifest, save_manifest
from ssl_core.data.reader import Reader
from ssl_core.data.sources import Source, SourceImage, open_source
from ssl_core.data.staging import staging
from ssl_core.data.writer import pack
from ssl_core.errors import Resumable, UserError
from ssl_core.storage.s3 import Folder

MakeImage = Callable[..., bytes]


@pytest.fixture
def images(tmp_path: Path, make_image: MakeImage) -> Path:
    """A folder with the classes cat (12 images) and dog (8)."""
    folder = tmp_path / "images"
    for number in range(20):
        path = folder / ("cat" if number < 12 else "dog") / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_image(number))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_image_is_there_once_with_its_label(images: Path, tmp_path: Path) -> None:
    packed = pack(open_source(str(images)), tmp_path / "out", shard_samples=6)
    assert packed.skipped == ()
    assert sorted(files(tmp_path / "out")) == ["manifest.json", *(f"shard-{number:05d}.tar" for number in range(4))]
    manifest = load_manifest(tmp_path / "out")
    assert packed.parts[""] == (tmp_path / "out", manifest)
    assert [shard.samples for shard in manifest.shards] == [6, 6, 6, 2]
    assert manifest.classes == ("cat", "dog")
    verify_shards(manifest)
    reader = Reader(manifest)
    found = {reader.key(position): (reader.encoded(position), reader.labels()[position]) for position in range(20)}
    assert found == {
        f"{path.parent.name}/{path.stem}": (path.read_bytes(), int(path.parent.name == "dog"))
        for path in images.rglob("*.jpg")
    }
    assert list(found) != sorted(found)  # shuffled


def test_webdataset_reads_what_we_write(images: Path, tmp_path: Path) -> None:
    pack(open_source(str(images)), tmp_path / "out", shard_samples=50)
    dataset: Any = WebDataset(str(tmp_path / "out/shard-00000.tar"), shardshuffle=False)
    samples = list(dataset.decode("rgb8").to_tuple("__key__", "jpg", "cls"))
    assert len(samples) == 20
    reader = Reader(load_manifest(tmp_path / "out"))
    for position, (key, image, label) in enumerate(samples):
        assert key == reader.key(position)
        assert label == reader.labels()[position]
        assert np.abs(image.astype(int) - reader.image(position)).max() <= 2


def test_the_same_input_gives_the_same_bytes(images: Path, tmp_path: Path) -> None:
    for path in images.rglob("*.jpg"):
        os.utime(path, (1, 1))
    pack(open_source(str(images)), tmp_path / "one", workers=1)
    for path in images.rglob("*.jpg"):
        os.utime(path, (99, 99))
    pack(open_source(str(images)), tmp_path / "two", workers=8)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    pack(open_source(str(images)), tmp_path / "three", seed=1)
    assert files(tmp_path / "one") != files(tmp_path / "three")
    with tarfile.open(tmp_path / "one/shard-00000.tar") as tar:
        assert {member.mtime for member in tar.getmembers()} == {0}


def test_a_split_is_stratified_and_complete(images: Path, tmp_path: Path) -> None:
    packed = pack(open_source(str(images)), tmp_path / "out", val_fraction=0.25)
    assert list(packed.parts) == ["train", "val"]
    labels = {part: Counter(Reader(manifest).labels().tolist()) for part, (_, manifest) in packed.parts.items()}
    assert labels == {"train": {0: 9, 1: 6}, "val": {0: 3, 1: 2}}
    keys = [Reader(manifest).key(one) for _, manifest in packed.parts.values() for one in range(manifest.num_samples)]
    assert len(set(keys)) == 20
    assert all(manifest.classes == ("cat", "dog") for _, manifest in packed.parts.values())


def test_a_split_of_too_little_is_refused(tmp_path: Path, make_image: MakeImage) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(make_image())
    with pytest.raises(UserError, match="leaves none for val"):
        pack(open_source(str(tmp_path / "images")), tmp_path / "out", val_fraction=0.1)


def test_what_does_not_decode_is_left_out_and_listed(images: Path, tmp_path: Path) -> None:
    whole = (images / "cat/03.jpg").read_bytes()
    (images / "cat/03.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "dog/15.jpg").write_text("no image")
    packed = pack(open_source(str(images)), tmp_path / "out", shard_samples=6)
    assert load_manifest(tmp_path / "out").num_samples == 18
    listed = (tmp_path / "out/skipped.txt").read_text().splitlines()
    assert listed == list(packed.skipped)
    assert [line.partition(": ")[0] for line in listed] == [str(images / "cat/03.jpg"), str(images / "dog/15.jpg")]


def test_nothing_readable_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"none of the 1 images .* can be decoded, such as .*a\.jpg"):
        pack(open_source(str(tmp_path / "images")), tmp_path / "new/out")
    assert not (tmp_path / "new").exists()


def test_a_file_that_cannot_be_read_stops_packing(images: Path, tmp_path: Path) -> None:
    """It may be readable tomorrow: leaving it out would make another data set without a word."""
    source = open_source(str(images))
    (images / "cat/05.jpg").unlink()
    with pytest.raises(UserError, match=r"05\.jpg cannot be read \(No such file or directory\): no data set was made"):
        pack(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_said_in_words(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssl_core.data.shard_writer.scan_shard", full)
    with pytest.raises(Resumable, match=rf"cannot write into {tmp_path}/out \(No space .* the same command continues"):
        pack(open_source(str(images)), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []  # no shard was finished


def test_manifests_come_last(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def save(manifest: Manifest, folder: Path) -> Folder:
        found = (path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*"))
        seen.append(sorted(str(path) for path in found if path.suffix in (".tar", ".json") and path.parts[0][0] != "."))
        return save_manifest(manifest, folder)

    monkeypatch.setattr("ssl_core.data.placing.save_manifest", save)
    pack(open_source(str(images)), tmp_path / "out", val_fraction=0.25)
    assert seen[0] == ["train/shard-00000.tar", "val/shard-00000.tar"]


def test_packing_the_same_again_changes_nothing(images: Path, tmp_path: Path) -> None:
    (images / "dog/15.jpg").write_text("no image")
    out = tmp_path / "out"
    first = pack(open_source(str(images)), out, val_fraction=0.25)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = pack(open_source(str(images)), out, val_fraction=0.25)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_other_content_is_not_overwritten(images: Path, tmp_path: Path, make_image: MakeImage) -> None:
    out = tmp_path / "out"
    pack(open_source(str(images)), out)
    before = files(out)
    with pytest.raises(UserError, match="other content"):
        pack(open_source(str(images)), out, seed=1)
    with pytest.raises(UserError, match="holds no finished data set of this kind"):
        pack(open_source(str(images)), out, val_fraction=0.5)
    (images / "dog/99.jpg").write_bytes(make_image(99))
    with pytest.raises(UserError, match="a data set of 20 images, the source has 21"):
        pack(open_source(str(images)), out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not empty"):
        pack(open_source(str(images)), tmp_path / "mine")
    with pytest.raises(UserError, match="is a file"):
        pack(open_source(str(images)), tmp_path / "mine/thesis.txt")
    assert files(out) == before
    assert files(tmp_path / "mine") == {"thesis.txt": b"years of work"}


def test_what_a_killed_run_of_another_kind_left_behind_is_cleared_away(images: Path, tmp_path: Path) -> None:
    left = tmp_path / "out/.packing/another-plan"
    left.mkdir(parents=True)
    (left / "shard-00000.tar").write_text("half")
    (left / "shard-00000.json").write_text("what it holds")
    pack(open_source(str(images)), tmp_path / "out")
    assert list(files(tmp_path / "out")) == ["manifest.json", "shard-00000.tar"]


def test_two_do_not_pack_into_one_place(images: Path, tmp_path: Path) -> None:
    with staging(tmp_path / "out") as theirs:
        (theirs / "shard-00000.tar").write_text("half")
        with pytest.raises(UserError, match=f"another pack is writing into output={tmp_path}/out"):
            pack(open_source(str(images)), tmp_path / "out")
        assert (theirs / "shard-00000.tar").read_text() == "half"


def test_keys_are_unique_and_safe(tmp_path: Path, make_image: MakeImage) -> None:
    names = ["a", "a", "a.b/c.d.e", "/etc/x", "../up", "né 鳥", "line\nbreak", "."]
    data = make_image()
    images = [SourceImage(name=name, extension="jpg", label=None, origin=name, read=lambda: data) for name in names]
    pack(Source(images=images, classes=()), tmp_path / "out")
    reader = Reader(load_manifest(tmp_path / "out"))
    keys = {reader.key(position) for position in range(reader.num_samples)}
    assert keys == {"a", "a-2", "a.b/c_d_e", "etc/x", "up", "né 鳥", "line_break", "image"}
    np.testing.assert_array_equal(reader.image(0), decode(data))
