"""Only local locations are opened, files appear whole, and a file is hashed once while it stays the same."""

import hashlib
import time
from pathlib import Path

import pytest

from ssl_core.errors import UserError
from ssl_core.storage import local


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(local.CACHE_VARIABLE, str(folder))
    return folder


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds from now, when what the test wrote has settled."""
    now = time.time_ns
    monkeypatch.setattr("ssl_core.storage.local.time.time_ns", lambda: now() + 10_000_000_000)


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/data/set", "/data/set"),
        ("data/set", "data/set"),
        ("./a:b", "a:b"),
        ("file:///data/set", "/data/set"),
        ("c:odd", "c:odd"),
    ],
)
def test_plain_paths_and_file_locations_are_local(location: str, path: str) -> None:
    assert local.local_path(location) == Path(path)


@pytest.mark.parametrize("location", ["pipe:cat /etc/passwd", "http://host/x", "gs://b/x", "PIPE:ls", "hdfs:/x"])
def test_other_schemes_are_refused_by_name(location: str) -> None:
    with pytest.raises(UserError, match=location.partition(":")[0]):
        local.local_path(location)


def test_s3_and_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="s3://bucket/x"):
        local.local_path("s3://bucket/x")
    with pytest.raises(UserError, match="empty"):
        local.local_path(" ")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write_half() -> None:
        with local.atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_half()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    local.publish_bytes(path, b"new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def hashes_taken(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    taken: list[Path] = []
    original = local.sha256_file

    def counted(path: Path) -> str:
        taken.append(path)
        return original(path)

    monkeypatch.setattr(local, "sha256_file", counted)
    return taken


def test_a_settled_file_is_hashed_once(tmp_path: Path, later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = hashes_taken(monkeypatch)
    path = tmp_path / "file"
    path.write_bytes(b"content")
    expected = hashlib.sha256(b"content").hexdigest()
    assert [local.stamped_sha256(path) for _ in range(3)] == [expected] * 3
    assert len(taken) == 1
    assert local.stamped_sha256(path, fresh=True) == expected
    assert len(taken) == 2


def test_a_change_is_seen(tmp_path: Path, later: None) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    local.stamped_sha256(path)
    path.write_bytes(b"CONTENT")
    assert local.stamped_sha256(path) == hashlib.sha256(b"CONTENT").hexdigest()


def test_a_file_that_was_just_written_gets_no_stamp(tmp_path: Path, cache: Path) -> None:
    """It could change again within the resolution of file times."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    local.stamped_sha256(path)
    assert not cache.exists()


def test_a_damaged_stamp_and_a_cache_that_cannot_be_written_cost_time_only(
    tmp_path: Path, cache: Path, later: None
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    expected = hashlib.sha256(b"content").hexdigest()
    local.stamped_sha256(path)
    (stamp,) = (cache / "stamps").iterdir()
    for text in ("{", "[]", "{}", '"x"'):
        stamp.write_text(text)
        assert local.stamped_sha256(path) == expected
    stamp.unlink()
    (cache / "stamps").rmdir()
    (cache / "stamps").write_text("a file in the way")
    assert local.stamped_sha256(path) == expected
