"""Images from a bucket, shards into a bucket: the same bytes as from and into a folder, sent once, whole or refused."""

from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest

from cluster.object_store import ObjectStore
from ssl_core.data.indexing import index_folder
from ssl_core.data.integrity import verify_shards
from ssl_core.data.manifest import load_manifest, save_manifest
from ssl_core.data.placing import BucketPlace
from ssl_core.data.sources import Source, open_source
from ssl_core.data.writer import Packed, pack
from ssl_core.errors import UserError
from ssl_core.storage import s3
from ssl_core.storage.s3 import S3Location
from tests.faulty_proxy import faulty_proxy

pytestmark = pytest.mark.s3
BUCKET = "packing"
OUT = S3Location(BUCKET, "sets/one")
IMAGES = 24
MakeImage = Callable[..., bytes]


@pytest.fixture
def images(tmp_path: Path, make_image: MakeImage) -> Path:
    """24 images in folders whose order is another one by whole names; one does not decode."""
    folder = tmp_path / "images"
    for number in range(IMAGES):
        path = folder / ("cat", "cat-2", "cat.x")[number % 3] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image" if number == 7 else make_image(number))
    (folder / "cat/notes.txt").write_text("no image")
    (folder / "cat/.hidden.jpg").write_bytes(make_image())
    return folder


@pytest.fixture
def client(s3_store: ObjectStore, images: Path) -> Generator[Any]:
    """A client of a bucket that holds the images below `photos`, and nothing else."""
    made: Any = boto3.client("s3", **s3_store.client_arguments)
    if BUCKET not in {one["Name"] for one in made.list_buckets()["Buckets"]}:
        made.create_bucket(Bucket=BUCKET)
    for path in (path for path in images.rglob("*") if path.is_file()):
        made.upload_file(str(path), BUCKET, f"photos/{path.relative_to(images).as_posix()}")
    yield made
    for name, _ in list(s3.list_sizes(S3Location(BUCKET, ""))):
        made.delete_object(Bucket=BUCKET, Key=name)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def objects(location: S3Location) -> dict[str, bytes]:
    return {name: s3.read_bytes(location / name) or b"" for name, _ in s3.list_sizes(location)}


@pytest.fixture
def sent(client: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that were uploaded."""
    names: list[str] = []
    original = s3.upload

    def upload(path: Path, location: S3Location, *, metadata: dict[str, str]) -> None:
        names.append(path.name)
        original(path, location, metadata=metadata)

    monkeypatch.setattr(s3, "upload", upload)
    return names


def pack_images(images: Path, output: Path | S3Location = OUT, **options: Any) -> Packed:
    defaults: dict[str, Any] = {"shard_samples": 4, "val_fraction": 0.3}
    return pack(open_source(str(images)), output, **defaults | options)


def broken_off(images: Path) -> None:
    """Some shards are sent, then an image cannot be read."""

    def fail() -> bytes:
        raise OSError(5, "Input/output error")

    source = open_source(str(images))
    some = [replace(image, read=fail) if image.name == "cat/00" else image for image in source.images]
    with pytest.raises(UserError, match=r"00\.jpg cannot be read"):
        pack(replace(source, images=some), OUT, shard_samples=1, workers=1)
    assert any(name.endswith(".tar") for name in objects(OUT))


def test_a_bucket_gets_what_a_folder_gets(images: Path, sent: list[str], stamps: Path, tmp_path: Path) -> None:
    here, there = pack_images(images, tmp_path / "out"), pack_images(images)
    assert objects(OUT) == files(tmp_path / "out")
    assert [str(folder) for folder, _ in there.parts.values()] == [f"{OUT}/train", f"{OUT}/val"]
    for part in ("train", "val"):
        assert load_manifest(f"{OUT}/{part}").digest == here.parts[part][1].digest
    assert not list((stamps / "packing").iterdir())
    assert len(sent) == len([name for name in objects(OUT) if name.endswith(".tar")])


def test_packing_the_same_again_sends_nothing(images: Path, sent: list[str], client: Any) -> None:
    first = pack_images(images)
    before = client.list_objects_v2(Bucket=BUCKET, Prefix=OUT.key)["Contents"]
    sent.clear()
    assert pack_images(images) == first
    assert sent == []
    assert client.list_objects_v2(Bucket=BUCKET, Prefix=OUT.key)["Contents"] == before


def test_something_else_is_refused_and_stays(images: Path, client: Any, make_image: MakeImage) -> None:
    pack_images(images)
    before = objects(S3Location(BUCKET, ""))
    with pytest.raises(UserError, match="holds a data set of other content"):
        pack_images(images, seed=1)
    with pytest.raises(UserError, match="holds no finished data set of this kind"):
        pack_images(images, val_fraction=0.0)
    with pytest.raises(UserError, match="holds no finished data set of this kind"):
        pack_images(images, S3Location(BUCKET, "photos"))
    (images / "cat/99.jpg").write_bytes(make_image(99))
    with pytest.raises(UserError, match="a data set of 24 images, the source has 25"):
        pack_images(images)
    assert objects(S3Location(BUCKET, "")) == before


def test_what_was_sent_is_not_sent_again(images: Path, sent: list[str], client: Any, tmp_path: Path) -> None:
    broken_off(images)
    finished = sorted(sent)
    assert "manifest.json" not in objects(OUT)
    client.create_multipart_upload(Bucket=BUCKET, Key=f"{OUT.key}/shard-00009.tar")  # as a kill leaves it
    sent.clear()
    packed = pack_images(images, shard_samples=1, val_fraction=0.0)
    assert packed.num_kept == len(finished)
    assert not set(finished) & set(sent)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET, Prefix=OUT.key)
    pack_images(images, tmp_path / "calm", shard_samples=1, val_fraction=0.0)
    assert objects(OUT) == files(tmp_path / "calm")


def test_without_records_shards_are_made_again_and_not_sent_again(
    images: Path, sent: list[str], stamps: Path, tmp_path: Path
) -> None:
    broken_off(images)
    finished = sorted(sent)
    stamps.rename(tmp_path / "elsewhere")  # the same command on another machine
    sent.clear()
    assert pack_images(images, shard_samples=1, val_fraction=0.0).num_kept == 0
    assert not set(finished) & set(sent)


def test_a_shard_that_was_damaged_or_removed_is_sent_again(images: Path, sent: list[str], client: Any) -> None:
    broken_off(images)
    client.delete_object(Bucket=BUCKET, Key=f"{OUT.key}/shard-00001.tar")
    sent.clear()
    assert pack_images(images, shard_samples=1, val_fraction=0.0).num_kept == 1
    assert "shard-00000.tar" not in sent
    assert "shard-00001.tar" in sent


def test_the_beginning_of_another_data_set_is_refused(images: Path, sent: list[str]) -> None:
    broken_off(images)
    before = objects(OUT)
    with pytest.raises(UserError, match="holds the beginning of a data set of other images or options"):
        pack_images(images, shard_samples=1, val_fraction=0.0, seed=1)
    assert objects(OUT) == before


def test_few_shards_are_on_disk_at_a_time(
    images: Path, client: Any, stamps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    original = s3.upload

    def upload(path: Path, location: S3Location, *, metadata: dict[str, str]) -> None:
        counts.append(len(list((stamps / "packing").rglob("*.tar"))))
        original(path, location, metadata=metadata)

    monkeypatch.setattr(s3, "upload", upload)
    pack_images(images, shard_samples=1, val_fraction=0.0)
    assert len(counts) == IMAGES - 1
    assert max(counts) <= 5


def test_images_in_a_bucket_make_the_same_shards(images: Path, client: Any, tmp_path: Path) -> None:
    here, there = open_source(str(images)), open_source(f"s3://{BUCKET}/photos/")
    assert there.classes == here.classes == ("cat", "cat-2", "cat.x")
    assert len(there.images) == IMAGES
    for one, other in zip(here.images, there.images, strict=True):
        assert (one.name, one.extension, one.label) == (other.name, other.extension, other.label)
        assert one.read() == other.read()
    assert there.images[-1].origin == f"s3://{BUCKET}/photos/cat.x/23.jpg"
    pack(here, tmp_path / "here", shard_samples=5)
    pack(there, tmp_path / "there", shard_samples=5)
    skipped = (tmp_path / "there/skipped.txt").read_bytes()
    assert skipped.startswith(b"s3://packing/photos/cat-2/07.jpg: ")
    assert files(tmp_path / "there") == files(tmp_path / "here") | {"skipped.txt": skipped}


def test_faults_on_the_way_change_nothing(
    images: Path, client: Any, endpoint: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(open_source(str(images)), tmp_path / "here", shard_samples=5)
    with faulty_proxy(endpoint.endpoint) as faults:
        faults.touched = "/packing/"
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
        monkeypatch.setattr("tests.faulty_proxy.FAULTS", ("reset", "500", "503", "short", "slow", "none"))
        pack(open_source(f"s3://{BUCKET}/photos"), OUT, shard_samples=5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.endpoint)
    assert faults.total > 30
    found = objects(OUT)
    del found["skipped.txt"]
    assert found.items() <= files(tmp_path / "here").items()


def test_a_listing_outlives_a_kill(images: Path, client: Any, tmp_path: Path, make_image: MakeImage) -> None:
    location = f"s3://{BUCKET}/photos"

    def listed(folder: Path, *, fail: bool) -> Source:
        source = open_source(location, listings=folder)

        def broken() -> bytes:
            raise OSError(5, "Input/output error")

        some = [replace(image, read=broken) if image.name == "cat/00" else image for image in source.images]
        return replace(source, images=some) if fail else source

    with pytest.raises(UserError, match="cannot be read"):
        pack(partial(listed, fail=True), tmp_path / "out", shard_samples=1, workers=1)
    client.put_object(Bucket=BUCKET, Key="photos/cat/99.jpg", Body=make_image(99))
    packed = pack(partial(listed, fail=False), tmp_path / "out", shard_samples=1)
    assert packed.num_kept > 0
    assert packed.parts[""][1].num_samples == IMAGES - 1  # without the new one
    assert len(open_source(location).images) == IMAGES + 1


def test_an_object_that_changed_since_the_listing_is_named(client: Any, tmp_path: Path) -> None:
    location = f"s3://{BUCKET}/photos"
    source = open_source(location)
    client.put_object(Bucket=BUCKET, Key="photos/cat/00.jpg", Body=b"other")
    client.delete_object(Bucket=BUCKET, Key="photos/cat/03.jpg")
    with pytest.raises(UserError, match=r"photos/cat/00\.jpg has 5 bytes instead of \d+ since the bucket was listed"):
        source.images[0].read()
    with pytest.raises(UserError, match=r"photos/cat/03\.jpg is gone since the bucket was listed"):
        source.images[1].read()
    with pytest.raises(UserError, match="since the bucket was listed"):
        pack(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bucket_without_images_is_told_apart(images: Path, client: Any) -> None:
    with pytest.raises(UserError, match=rf"no images in s3://{BUCKET}/nowhere"):
        open_source(f"s3://{BUCKET}/nowhere")
    pack_images(images)
    with pytest.raises(UserError, match=rf"s3://{BUCKET}/sets/one/train has shards and no images: use index="):
        open_source(f"s3://{BUCKET}/sets/one/train")
    client.put_object(Bucket=BUCKET, Key="photos/own.jpg", Body=b"x")
    with pytest.raises(UserError, match=r"1 images of its own and 24 in folders.*labels=none"):
        open_source(f"s3://{BUCKET}/photos")
    assert open_source(f"s3://{BUCKET}/photos", labels="none").classes == ()


def test_shards_in_a_bucket_are_described_as_in_a_folder(images: Path, client: Any, tmp_path: Path) -> None:
    pack(open_source(str(images)), tmp_path / "set", shard_samples=4)
    (tmp_path / "set/classes.txt").write_text("cat\ncat-2\ncat.x\n")
    manifest = load_manifest(tmp_path / "set")
    for path in (tmp_path / "set").iterdir():
        if path.name != "manifest.json":
            client.upload_file(str(path), BUCKET, f"shards/{path.name}")
    found, findings = index_folder(S3Location(BUCKET, "shards"))
    assert (found.digest, found.root) == (manifest.digest, f"s3://{BUCKET}/shards")
    assert findings.unreadable == ()
    save_manifest(found, S3Location(BUCKET, "shards"))
    assert load_manifest(f"s3://{BUCKET}/shards") == found
    with pytest.raises(UserError, match=rf"s3://{BUCKET}/ has no \.tar shards: its folders shards do: index each"):
        index_folder(S3Location(BUCKET, ""))


def test_few_shards_are_fetched_at_a_time(images: Path, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_images(images, shard_samples=1, val_fraction=0.0)
    counts: list[int] = []
    original = s3.download

    def download(location: S3Location, path: Path, *, size: int) -> None:
        counts.append(1 + len(list(path.parent.iterdir())))
        original(location, path, size=size)

    monkeypatch.setattr(s3, "download", download)
    index_folder(OUT)
    assert len(counts) == IMAGES - 1
    assert max(counts) <= 3


def test_processes_read_a_bucket_too(client: Any, tmp_path: Path) -> None:
    source = open_source(f"s3://{BUCKET}/photos")
    pack(source, tmp_path / "threads", shard_samples=5)
    pack(source, tmp_path / "processes", shard_samples=5, processes=2)
    assert files(tmp_path / "threads") == files(tmp_path / "processes")


@pytest.fixture
def elsewhere(images: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Packed]:
    """Packs from another machine: with a cache folder of its own, so that the local lock says nothing."""

    def pack_elsewhere(**options: Any) -> Packed:
        with monkeypatch.context() as there:
            there.setenv("SSL_PIPELINES_CACHE", str(tmp_path / "elsewhere"))
            return pack_images(images, shard_samples=1, **options)

    return pack_elsewhere


def assert_as_packed_alone(images: Path, folder: Path) -> None:
    """What stands in the bucket is what one machine makes of the images."""
    pack_images(images, folder, shard_samples=1)
    assert objects(OUT) == files(folder)


def before_upload(number: int, then: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something happen while the n-th shard is about to be sent."""
    original, count = s3.upload, 0

    def upload(path: Path, location: S3Location, *, metadata: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count == number:
            then()
        original(path, location, metadata=metadata)

    monkeypatch.setattr(s3, "upload", upload)


@pytest.mark.parametrize("number", [1, 5])
def test_another_machine_with_other_options_is_refused_while_one_packs(
    number: int, images: Path, elsewhere: Callable[..., Packed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    def other() -> None:
        with pytest.raises(UserError, match="holds the beginning of a data set of other images or options: wait") as it:
            elsewhere(seed=1)
        refused.append(str(it.value))

    before_upload(number, other, monkeypatch)
    packed = pack_images(images, shard_samples=1)
    assert len(refused) == 1
    for _, manifest in packed.parts.values():
        verify_shards(manifest)
    assert_as_packed_alone(images, tmp_path / "calm")


@pytest.mark.parametrize("until", ["end", "middle"])
def test_who_began_at_the_same_time_with_other_options_is_refused_before_it_sends_a_shard(
    until: str, images: Path, elsewhere: Callable[..., Packed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, begun = BucketPlace.put, False

    def put(self: BucketPlace, *arguments: Any) -> None:
        nonlocal begun
        if not begun:  # both saw an empty folder
            begun = True
            if until == "middle":
                before_upload(3, broken_connection, monkeypatch)
                with pytest.raises(UserError, match="it broke"):
                    elsewhere()
            else:
                elsewhere()
        original(self, *arguments)

    def broken_connection() -> None:
        raise UserError("it broke")

    monkeypatch.setattr(BucketPlace, "put", put)
    with pytest.raises(UserError, match="holds the beginning of a data set of other images or options"):
        pack_images(images, shard_samples=1, seed=1)
    elsewhere()
    assert_as_packed_alone(images, tmp_path / "calm")


def test_two_machines_with_the_same_command_make_one_data_set(
    images: Path, elsewhere: Callable[..., Packed], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_upload(5, elsewhere, monkeypatch)
    pack_images(images, shard_samples=1)
    assert_as_packed_alone(images, tmp_path / "calm")


def test_a_pack_that_sent_nothing_claims_nothing(images: Path, client: Any) -> None:
    for path in images.rglob("*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="can be decoded"):
        pack_images(images)
    assert objects(OUT) == {}
