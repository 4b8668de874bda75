"""What preflight asks of a node, with faults planted in stores, shards and disks."""

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import boto3
import pytest

from cluster.object_store import ObjectStore
from pipelines import node_facts, pack
from pipelines.node_facts import cache_space, disk_spaces, fetch, shared_memory, try_files, try_store, versions
from ssl_core.data.manifest import Manifest, load_manifest
from ssl_core.errors import UserError
from ssl_core.storage.cache import CacheConfig
from ssl_core.storage.files import LocalFiles
from ssl_core.storage.s3 import S3Location


def test_a_folder_does_all_that_checkpoints_need_and_is_left_as_it_was(tmp_path: Path) -> None:
    assert try_store(tmp_path / "runs/first/checkpoints") < 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.s3
def test_a_bucket_does_too(s3_store: ObjectStore) -> None:
    s3_store.make_bucket("preflight")
    assert try_store(S3Location("preflight", "runs/first")) < 30
    client = boto3.client("s3", **s3_store.client_arguments)
    assert "Contents" not in client.list_objects_v2(Bucket="preflight")
    with pytest.raises(UserError, match="there is no such bucket"):
        try_store(S3Location("no-such-bucket", "runs"))


class Replaces(LocalFiles):
    """A store that does not know conditional puts."""

    def create(self, name: str, data: bytes) -> bool:
        self.remove([name])
        return super().create(name, data)


class Garbles(LocalFiles):
    @contextmanager
    def reading(self, name: str) -> Generator[Path]:
        with super().reading(name) as path:
            path.write_bytes(path.read_bytes()[:-1] + b"!")
            yield path


class ListsNothing(LocalFiles):
    def names(self) -> list[str]:
        return []


class Keeps(LocalFiles):
    def remove(self, names: Iterable[str]) -> None: ...


class Refuses(LocalFiles):
    def create(self, name: str, data: bytes) -> bool:
        raise PermissionError(13, "Permission denied", name)


@pytest.mark.parametrize(
    ("store", "words"),
    [
        (Replaces, "in the place of another one"),
        (Garbles, "other bytes than were written"),
        (ListsNothing, "does not list"),
        (Keeps, "still has a file that was removed"),
        (Refuses, "Permission denied"),
    ],
)
def test_a_store_that_lacks_something_is_refused(store: type[LocalFiles], words: str, tmp_path: Path) -> None:
    with pytest.raises((UserError, OSError), match=words):
        try_files(store(tmp_path), "the store")
    if store is not Keeps:
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*arguments: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "link", read_only)  # modes do not stop the superuser
    with pytest.raises(OSError, match="Read-only file system"):
        try_store(tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("digits")
    pack.main(["source=digits", f"output={folder}", "shard_samples=500"])
    return load_manifest(folder / "train")


def test_a_shard_is_read_whole_and_compared(digits: Manifest) -> None:
    first = replace(digits, shards=digits.shards[:1])
    assert fetch([first]).num_bytes == digits.shards[0].bytes
    wrong = replace(digits.shards[0], sha256="0" * 64)
    with pytest.raises(UserError, match=r"shard .* differs from its checksum \(sha256 .* instead of 00000000"):
        fetch([replace(digits, shards=(wrong,))])
    with pytest.raises(UserError, match="is missing"):
        fetch([replace(first, root="/no/such/folder")])


def test_what_lies_on_one_file_system_is_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    config = CacheConfig(folder=str(cache), max_bytes=1000)
    wanted = {"a": 2000, "b": 3000}
    (both,) = disk_spaces(config, wanted, tmp_path / "runs/checkpoints", 300, 4)
    assert (both.what, both.needed_bytes) == (("the shards' cache", "checkpoints"), 1000 + 4 * 300)
    assert both.free_bytes > 1000
    cache.mkdir()
    (cache / "another").write_bytes(bytes(400))
    (both,) = disk_spaces(config, wanted, tmp_path, 300, 4)
    assert both.needed_bytes == 600 + 4 * 300
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (alone,) = disk_spaces(config, {}, S3Location("bucket", "key"), 300, 4)
    assert (alone.what, alone.needed_bytes) == (("a checkpoint on its way",), 300)


@pytest.mark.parametrize(
    ("there", "grows_by"),
    [
        ({}, 500),
        ({"a": 200}, 300),
        ({"a": 200, "b": 300}, 0),
        ({"another": 400}, 500),  # what another run has left makes room only at the limit
        ({"another": 800}, 200),
        ({"another": 1000}, 0),
        ({"another": 1200}, 0),  # the limit was lowered since
        ({"another": 900, "a": 200}, 0),
    ],
)
def test_the_cache_grows_by_the_shards_that_are_not_there(there: dict[str, int], grows_by: int, tmp_path: Path) -> None:
    for name, size in there.items():
        (tmp_path / name).write_bytes(bytes(size))
    space = cache_space(CacheConfig(folder=str(tmp_path), max_bytes=1000), {"a": 200, "b": 300})
    assert space.needed_bytes == grows_by


def test_a_shard_that_becomes_whole_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(bytes(200))
    names = [tmp_path / "b.partial", tmp_path / "a"]

    def before_it_was_renamed(folder: Path) -> Iterator[Path]:
        return iter(names)

    monkeypatch.setattr(Path, "iterdir", before_it_was_renamed)
    assert cache_space(CacheConfig(folder=str(tmp_path)), {"a": 200, "b": 300}).needed_bytes == 300


def test_versions_follow_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = versions()
    assert {"python", "torch", "ray", "ssl-pipelines"} == set(here)
    assert versions() == here
    (tmp_path / "changed.py").write_text("x = 1")

    def source(package: str) -> Path:
        return tmp_path

    monkeypatch.setattr(node_facts, "resources", source)
    assert versions()["ssl-pipelines"] != here["ssl-pipelines"]


def test_shared_memory_is_looked_at_where_there_is_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(node_facts, "SHARED_MEMORY", tmp_path)
    found = shared_memory()
    assert found
    assert found.free_bytes > 0
    monkeypatch.setattr(node_facts, "SHARED_MEMORY", tmp_path / "none")
    assert shared_memory() is None
