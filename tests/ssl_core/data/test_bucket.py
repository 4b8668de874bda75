"""A data set in a bucket, over HTTP from a real endpoint, through faults: the same bytes, or a clear word."""

from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from cluster.object_store import ObjectStore
from pipelines import pack
from ssl_core.data.data_set import load_data_set
from ssl_core.data.integrity import check_shards, find_damage
from ssl_core.data.manifest import Manifest, load_manifest
from ssl_core.data.reader import Reader
from ssl_core.errors import Resumable, UserError
from ssl_core.storage.cache import CacheConfig
from tests.faulty_proxy import faulty_proxy

pytestmark = pytest.mark.s3
BUCKET, FOLDER = "images", "digits/train"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,438 digits in 240 shards."""
    folder = tmp_path_factory.mktemp("digits")
    pack.main(["source=digits", f"output={folder}", "shard_samples=6"])
    return folder / "train"


@pytest.fixture(scope="module")
def client(endpoint: ObjectStore, local: Path) -> Any:
    """A client of a store that holds these shards."""
    made: Any = boto3.client("s3", **endpoint.client_arguments)
    made.create_bucket(Bucket=BUCKET)
    for path in sorted(local.iterdir()):
        made.upload_file(str(path), BUCKET, f"{FOLDER}/{path.name}")
    return made


@pytest.fixture
def bucket(s3_store: ObjectStore, client: Any) -> str:
    """Its location."""
    return f"s3://{BUCKET}/{FOLDER}"


@pytest.fixture(scope="module")
def folder_beside(local: Path) -> str:
    """The 359 validation digits, in 60 shards."""
    return str(local.parent / "val")


def at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)


def small_cache(manifest: Manifest, folder: Path, *, shards: int) -> CacheConfig:
    return CacheConfig(folder=str(folder), max_bytes=shards * max(shard.bytes for shard in manifest.shards))


def test_a_bucket_has_the_same_manifest_and_samples(bucket: str, local: Path, tmp_path: Path) -> None:
    here, there = load_manifest(local), load_manifest(bucket)
    assert there.digest == here.digest
    assert there.root == bucket
    check_shards(there)
    readers = Reader(here), Reader(there, cache=small_cache(there, tmp_path / "c", shards=3), max_open_shards=2)
    for position in (0, 5, 6, 700, 1437, 3):
        assert readers[0].encoded(position) == readers[1].encoded(position)
        assert readers[0].key(position) == readers[1].key(position)
    kept = [path for path in (tmp_path / "c").iterdir() if len(path.name) == 64]
    assert len(kept) <= 3


def test_a_bucket_and_a_folder_are_joined(bucket: str, folder_beside: str, tmp_path: Path) -> None:
    """Only the bucket's shards are fetched ahead and count against the cache."""
    there, beside = load_manifest(bucket), load_manifest(folder_beside)
    data = load_data_set([folder_beside, bucket])
    cache = small_cache(there, tmp_path / "c", shards=4)
    reader = Reader(data, cache=cache)
    assert data.bucket_shards == there.shards
    alone = Reader(beside)
    reader.prepare(np.asarray([0, beside.num_samples, beside.num_samples + 700]))
    assert {path.name for path in (tmp_path / "c").iterdir() if len(path.name) == 64} == {
        there.shards[0].sha256,
        there.shards[700 // 6].sha256,
    }
    for position in (0, 5, beside.num_samples - 1):
        assert reader.encoded(position) == alone.encoded(position)
    for position in (0, 5, 6, 700, 1437):
        assert reader.key(beside.num_samples + position) == Reader(there, cache=cache).key(position)
    for position in range(0, data.num_samples, 6):
        reader.encoded(position)
    assert len(reader._open) == 4 + len(beside.shards)  # pyright: ignore[reportPrivateUsage] (nothing else shows it)


def test_300_faults_lose_nothing_and_change_nothing(
    bucket: str, endpoint: ObjectStore, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_proxy(endpoint.endpoint) as faults:
        at(faults.url, monkeypatch)
        here, there = Reader(load_manifest(local)), load_manifest(bucket)
        seen = 0
        for turn in range(4):  # each turn with an empty cache
            reader = Reader(there, cache=CacheConfig(folder=str(tmp_path / str(turn))))
            for position in range(0, here.num_samples, 6):
                assert reader.encoded(position) == here.encoded(position)
                seen += 1
            if faults.total >= 300:
                break
    assert faults.total >= 300
    assert set(faults.counts) == {"reset", "500", "503", "short", "flipped", "slow", "none"}
    assert seen >= 240


def test_a_missing_object_is_named_at_once(
    bucket: str, endpoint: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_manifest(bucket)
    with faulty_proxy(endpoint.endpoint) as faults:
        at(faults.url, monkeypatch)
        faults.missing = f"/{BUCKET}/{FOLDER}/{manifest.shards[7].name}"
        reader = Reader(manifest, cache=CacheConfig(folder=str(tmp_path)))
        with pytest.raises(UserError, match=rf"{manifest.shards[7].name}: there is no such object"):
            reader.encoded(7 * 6)


def test_a_changed_object_stops_the_run_resumably(bucket: str, client: Any, local: Path, tmp_path: Path) -> None:
    manifest = load_manifest(bucket)
    shard = manifest.shards[9]
    data = bytearray((local / shard.name).read_bytes())
    data[600] ^= 1
    client.put_object(Bucket=BUCKET, Key=f"{FOLDER}/{shard.name}", Body=bytes(data))
    try:
        with pytest.raises(Resumable, match=rf"{shard.name} differs from its checksum .* four times over"):
            Reader(manifest, cache=CacheConfig(folder=str(tmp_path))).encoded(9 * 6)
        assert [damage.shard.name for damage in find_damage(manifest, manifest.shards[8:11])] == [shard.name]
    finally:
        client.upload_file(str(local / shard.name), BUCKET, f"{FOLDER}/{shard.name}")


def test_shards_that_are_not_as_listed_are_named_before_anything_starts(bucket: str, client: Any, local: Path) -> None:
    name = load_manifest(bucket).shards[3].name
    client.delete_object(Bucket=BUCKET, Key=f"{FOLDER}/{name}")
    try:
        with pytest.raises(UserError, match=f"shard {name} in {bucket} is missing"):
            check_shards(load_manifest(bucket))
    finally:
        client.upload_file(str(local / name), BUCKET, f"{FOLDER}/{name}")


def test_what_cannot_get_better_is_said_in_one_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(bucket)
    with pytest.raises(UserError, match=r"s3://images/digits has no manifest\.json"):
        load_manifest("s3://images/digits")
    with pytest.raises(UserError, match="no such bucket"):
        load_manifest("s3://nowhere/at-all")
    with pytest.raises(UserError, match="write s3://<bucket>/<folder>"):
        load_manifest("s3:///train")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="check the credentials and the endpoint"):
        load_manifest(bucket)
    with pytest.raises(UserError, match="check the credentials and the endpoint"):  # and not: is missing
        find_damage(manifest, manifest.shards[:1])


def test_a_store_that_is_away_is_resumable(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(Resumable, match=r"8 times over.*Could not connect"):
        load_manifest(bucket)
