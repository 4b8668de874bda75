"""A shard that is missing, cut or changed is found and named, and a second look is taken before a run stops."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_core.data import integrity
from ssl_core.data.integrity import LocalShards, check_shards, find_damage, verify_shards
from ssl_core.data.manifest import Manifest
from ssl_core.errors import Resumable, UserError

MakeSet = Callable[..., Manifest]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_whole_shards_pass(make_set: MakeSet) -> None:
    manifest = make_set()
    check_shards(manifest)
    verify_shards(manifest)
    assert find_damage(manifest, manifest.shards, fresh=True) == []
    assert LocalShards(root=Path(manifest.root))(manifest.shards[1]).name == "shard-00001.tar"


def test_a_missing_shard_is_named(make_set: MakeSet) -> None:
    manifest = make_set()
    (Path(manifest.root) / "shard-00001.tar").unlink()
    for look in (check_shards, verify_shards):
        with pytest.raises(UserError, match=r"shard-00001\.tar .* is missing: restore it, or run"):
            look(manifest)


def test_a_shard_of_another_size_is_named_without_hashing(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_set()
    path = Path(manifest.root) / "shard-00000.tar"
    path.write_bytes(path.read_bytes()[:-512])

    def forbidden(path: Path, *, fresh: bool = False) -> str:
        raise AssertionError("hashed")

    monkeypatch.setattr(integrity, "stamped_sha256", forbidden)
    with pytest.raises(UserError, match=r"shard-00000\.tar .* has 19,968 bytes instead of 20,480"):
        check_shards(manifest)


def test_a_flipped_bit_is_named_with_both_sums(make_set: MakeSet) -> None:
    manifest = make_set()
    flip(Path(manifest.root) / "shard-00001.tar")
    check_shards(manifest)
    with pytest.raises(UserError, match=rf"shard-00001\.tar .* instead of {manifest.shards[1].sha256[:16]}"):
        verify_shards(manifest)
    assert [damage.shard.name for damage in find_damage(manifest, manifest.shards)] == ["shard-00001.tar"]


def test_only_what_was_asked_for_is_hashed(make_set: MakeSet) -> None:
    manifest = make_set((1, 1, 1))
    flip(Path(manifest.root) / "shard-00002.tar")
    verify_shards(manifest, names=["shard-00000.tar"])
    verify_shards(manifest, max_bytes=2 * manifest.shards[0].bytes)
    with pytest.raises(UserError, match="shard-00002"):
        verify_shards(manifest, max_bytes=3 * manifest.shards[0].bytes)
    with pytest.raises(UserError, match="shard-00002"):
        verify_shards(manifest, names=["shard-00002.tar"])


def test_a_damaged_shard_stops_the_run_after_three_more_looks(
    make_set: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make_set()
    looks: list[bool] = []

    def wrong(path: Path, *, fresh: bool = False) -> str:
        looks.append(fresh)
        return "0" * 64

    monkeypatch.setattr(integrity, "stamped_sha256", wrong)
    with pytest.raises(Resumable, match=r"shard-00000\.tar .* differs from its checksum.*four times over"):
        LocalShards(root=Path(manifest.root))(manifest.shards[0])
    assert looks == [False, True, True, True]  # the later looks do not trust a stamp


def test_a_shard_that_is_right_at_the_second_look_is_taken(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_set()
    answers = iter(["0" * 64, manifest.shards[0].sha256])

    def answer(path: Path, *, fresh: bool = False) -> str:
        return next(answers)

    monkeypatch.setattr(integrity, "stamped_sha256", answer)
    assert LocalShards(root=Path(manifest.root))(manifest.shards[0]).is_file()


def test_without_verification_the_size_still_counts(make_set: MakeSet) -> None:
    manifest = make_set()
    flip(Path(manifest.root) / "shard-00000.tar")
    fetch = LocalShards(root=Path(manifest.root), verify=False)
    assert fetch(manifest.shards[0]).is_file()
    (Path(manifest.root) / "shard-00000.tar").write_bytes(b"")
    with pytest.raises(Resumable, match="has 0 bytes"):
        fetch(manifest.shards[0])
