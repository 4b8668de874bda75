"""A position is the same sample however it is reached; what does not decode is replaced by its shard's next sample."""

import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier, BrokenBarrierError
from typing import Any

import numpy as np
import pytest

from ssl_core.data import reader as module
from ssl_core.data.decode import decode
from ssl_core.data.manifest import Manifest, ShardInfo, load_manifest
from ssl_core.data.reader import Reader
from ssl_core.errors import Resumable, UserError

MakeSet = Callable[..., Manifest]
MakeImage = Callable[..., bytes]


def test_positions_run_through_the_shards_in_manifest_order(make_set: MakeSet, make_image: MakeImage) -> None:
    reader = Reader(make_set((5, 1, 4)))
    assert reader.num_samples == 10
    assert reader.labels().tolist() == [position % 3 for position in range(10)]
    for position in (9, 0, 5, 4, 6):
        assert reader.key(position) == f"sample-{position:03d}"
        assert reader.encoded(position) == make_image(position)
        np.testing.assert_array_equal(reader.image(position), decode(make_image(position)))
    for position in (-1, 10):
        with pytest.raises(IndexError):
            reader.image(position)


def test_channels(make_set: MakeSet) -> None:
    manifest = make_set()
    assert [Reader(manifest, channels=channels).image(0).shape for channels in (1, 3, 4)] == [
        (12, 16, c) for c in (1, 3, 4)
    ]
    with pytest.raises(UserError, match="in_chans=2"):
        Reader(manifest, channels=2)


def test_a_bad_sample_shows_the_next_readable_one_of_its_shard(make_set: MakeSet, make_image: MakeImage) -> None:
    reader = Reader(make_set((5, 4), bad=(2, 3, 8)), max_bad=3)
    shown = {2: 4, 3: 4, 8: 5}  # the last one of a shard goes on with the first one
    for position in (8, 3, 2, 8, 0):
        np.testing.assert_array_equal(reader.image(position), decode(make_image(shown.get(position, position))))
    assert sorted(reader.quarantine.snapshot()) == [2, 3, 8]
    assert reader.quarantine.snapshot()[8].startswith("shard-00001.tar, key sample-008: ")
    assert (reader.key(2), reader.labels()[2]) == ("sample-002", 2)  # the slot keeps its place
    reader.quarantine.check()


def test_too_many_bad_samples_stop_the_run_at_the_next_check(make_set: MakeSet) -> None:
    reader = Reader(make_set((5, 4), bad=(2, 8)), max_bad=1)
    reader.image(2)
    reader.quarantine.check()
    reader.image(8)
    with pytest.raises(Resumable, match=r"shard-00000\.tar, key sample-002"):
        reader.quarantine.check()


def test_what_was_restored_is_not_tried_again(make_set: MakeSet, make_image: MakeImage) -> None:
    """After a restart, a position shows what it showed before, whatever the decoder thinks now."""
    reader = Reader(make_set((5, 4)))
    reader.quarantine.restore({"1": "did not decode on another day"})
    np.testing.assert_array_equal(reader.image(1), decode(make_image(2)))


def test_a_shard_without_any_readable_sample_is_named(make_set: MakeSet) -> None:
    manifest = make_set((5, 1), bad=())
    reader = Reader(manifest, max_pixels=10)
    with pytest.raises(UserError, match=r"shard-00001\.tar .*none of its 1 samples decodes"):
        reader.image(5)


@pytest.mark.parametrize("error", [OSError, MemoryError, ConnectionError, KeyboardInterrupt, Resumable, UserError])
def test_only_what_does_not_decode_is_quarantined(
    error: type[BaseException], make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may be otherwise the next time is the failure of the run, never of the sample."""
    reader = Reader(make_set())

    def away(*_: Any, **__: Any) -> Any:
        raise error("stale file handle")

    monkeypatch.setattr(module, "decode", away)
    with pytest.raises(error, match="stale"):
        reader.image(0)
    assert reader.quarantine.count == 0


def test_a_changed_shard_stops_the_run(make_set: MakeSet) -> None:
    manifest = make_set()
    path = Path(manifest.root) / "shard-00001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    reader = Reader(manifest)
    reader.image(4)
    with pytest.raises(Resumable, match=r"shard-00001\.tar"):
        reader.image(5)
    assert reader.quarantine.count == 0


def test_a_manifest_that_counts_otherwise_is_refused(make_set: MakeSet) -> None:
    manifest = make_set()
    (shard, other) = manifest.shards
    object.__setattr__(
        manifest, "shards", (ShardInfo(name=shard.name, samples=4, bytes=shard.bytes, sha256=shard.sha256), other)
    )
    with pytest.raises(UserError, match="has 5 samples, its manifest says 4"):
        Reader(manifest).image(0)


def test_shards_can_come_from_elsewhere(make_set: MakeSet, tmp_path: Path, make_image: MakeImage) -> None:
    """The seam for object storage: whoever fetches gives a path to verified bytes."""
    manifest = make_set(name="there")
    (tmp_path / "there").rename(tmp_path / "cache-of-shards")
    fetched: list[str] = []

    def fetch(shard: ShardInfo) -> Path:
        fetched.append(shard.name)
        return tmp_path / "cache-of-shards" / shard.name

    reader = Reader(manifest, fetch=fetch)
    assert reader.encoded(8) == make_image(8)
    assert reader.encoded(5) == make_image(5)
    assert fetched == ["shard-00001.tar"]


def test_few_shards_stay_open_and_what_was_read_stays_valid(make_set: MakeSet, make_image: MakeImage) -> None:
    opened: list[str] = []
    manifest = make_set((2, 2, 2))

    def fetch(shard: ShardInfo) -> Path:
        opened.append(shard.name[6:11])
        return Path(manifest.root) / shard.name

    reader = Reader(manifest, fetch=fetch, max_open_shards=2)
    for position in (0, 2, 1, 4, 0, 3):
        assert reader.encoded(position) == make_image(position)
    assert opened == ["00000", "00001", "00002", "00001"]  # the one not used for longest is let go


def test_threads_share_a_reader(make_set: MakeSet, make_image: MakeImage) -> None:
    manifest = make_set((7, 5, 6), bad=(3, 11))
    opened: list[str] = []

    def fetch(shard: ShardInfo) -> Path:
        opened.append(shard.name)
        return Path(manifest.root) / shard.name

    reader = Reader(manifest, fetch=fetch)
    positions = [(7 * step) % 18 for step in range(400)]
    expected = [decode(make_image({3: 4, 11: 7}.get(position, position))) for position in range(18)]
    with ThreadPoolExecutor(8) as pool:
        for position, image in zip(positions, pool.map(reader.image, positions), strict=True):
            np.testing.assert_array_equal(image, expected[position])
    assert sorted(opened) == ["shard-00000.tar", "shard-00001.tar", "shard-00002.tar"]
    assert sorted(reader.quarantine.snapshot()) == [3, 11]


def test_a_shard_is_opened_by_one_thread_while_others_wait(make_set: MakeSet) -> None:
    manifest = make_set((3,))
    meeting = Barrier(2)
    opened: list[str] = []

    def fetch(shard: ShardInfo) -> Path:
        opened.append(shard.name)
        with suppress(BrokenBarrierError):
            meeting.wait(0.5)  # whoever else opens it would be met here
        return Path(manifest.root) / shard.name

    reader = Reader(manifest, fetch=fetch)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(reader.encoded, (0, 1)))
    assert opened == ["shard-00000.tar"]


def test_the_shared_cifar_shards_read_as_tarfile_reads_them(shared: Path, tmp_path: Path) -> None:
    from ssl_core.data.indexing import index_folder
    from ssl_core.data.manifest import save_manifest

    folder = shared / "data/cifar10/val"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/cifar10, which is not here")
    manifest, _ = index_folder(folder)
    save_manifest(manifest, tmp_path)
    reader = Reader(load_manifest(tmp_path))
    assert (reader.num_samples, manifest.classes[3], manifest.width) == (8000, "cat", (32, 32))
    named = [manifest.classes[label] for label in reader.labels()]
    assert named == [reader.key(position).split("-")[1] for position in range(8000)]
    with tarfile.open(folder / "shard-00001.tar") as tar:
        images = [member for member in tar.getmembers() if member.name.endswith(".jpg")]
        for sample in (0, 1, 1999, 3999):
            extracted = tar.extractfile(images[sample])
            assert extracted is not None
            assert reader.encoded(4000 + sample) == extracted.read()
            assert images[sample].name == f"{reader.key(4000 + sample)}.jpg"
