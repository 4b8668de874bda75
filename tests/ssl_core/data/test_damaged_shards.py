"""Shards that are cut or overwritten: each is found by name, also where webdataset's own reader says nothing."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssl_core.data.indexing import index_folder
from ssl_core.data.integrity import check_shards, find_damage
from ssl_core.data.manifest import Manifest
from ssl_core.data.reader import Reader
from ssl_core.data.tar import index_shard
from ssl_core.errors import Resumable, UserError

MakeImage = Callable[..., bytes]
MakeTar = Callable[..., bytes]
MakeSet = Callable[..., Manifest]
FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
BLOCK = 512


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_at_any_place_is_found(form: str, tmp_path: Path, make_tar: MakeTar, make_image: MakeImage) -> None:
    """Every 64 bytes: in headers, in long names and their headers, in contents, in padding, at members' boundaries."""
    long = "" if form == "ustar" else "folder-" * 90  # longer than a block
    members = [
        member for n in range(3) for member in ((f"{long}{n}.jpg", make_image(n)), (f"{long}{n}.cls", b"%d" % n))
    ]
    whole = make_tar(members, form=FORMS[form])
    path = tmp_path / "shard-00000.tar"
    path.write_bytes(whole)
    manifest, _ = index_folder(tmp_path)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        end = tar.getmembers()[-1].offset_data + 2 * BLOCK  # its contents and a block of zeros, end mark enough
    for cut in range(0, len(whole), 64):
        path.write_bytes(whole[:cut])
        assert [damage.what for damage in find_damage(manifest, manifest.shards)] == [
            f"has {cut:,} bytes instead of {len(whole):,}"
        ]
        refusal = why_refused(whole[:cut], path.name)  # and without a manifest, when it is made
        assert (refusal is None) == (cut >= end)
        assert refusal is None or refusal.startswith("shard-00000.tar: ")


def why_refused(shard: bytes, name: str) -> str | None:
    try:
        index_shard(shard, name)
    except UserError as error:
        return str(error)
    return None


def seen_by_webdataset(path: Path) -> list[str]:
    from webdataset.compat import WebDataset

    samples: Any = WebDataset(str(path), shardshuffle=False, empty_check=False)
    return [sample["__key__"] for sample in samples if "jpg" in sample]


def member_offsets(shard: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        return [member.offset for member in tar.getmembers()]


DAMAGE: dict[str, Callable[[bytes, int], bytes]] = {
    "cut at a member": lambda shard, at: shard[:at],
    "cut at a member and closed": lambda shard, at: shard[:at] + bytes(2 * BLOCK),
    "cut inside a header": lambda shard, at: shard[: at + 100],
    "a header of zero bytes": lambda shard, at: shard[:at] + bytes(BLOCK) + shard[at + BLOCK :],
    "a header of garbage": lambda shard, at: shard[:at] + bytes(range(1, 129)) * 4 + shard[at + BLOCK :],
    "a byte of the contents": lambda shard, at: shard[: at + 600] + bytes([shard[at + 600] ^ 1]) + shard[at + 601 :],
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_webdataset_swallows_is_found_by_the_manifest(what: str, make_set: MakeSet) -> None:
    manifest = make_set((8,))
    (shard,) = manifest.shards
    path = Path(manifest.root) / shard.name
    whole = path.read_bytes()
    assert len(seen_by_webdataset(path)) == 8
    path.write_bytes(DAMAGE[what](whole, member_offsets(whole)[8]))

    assert len(seen_by_webdataset(path)) == (8 if what == "a byte of the contents" else 4)  # and not a word

    (damage,) = find_damage(manifest, manifest.shards)
    assert (damage.shard.name, bool(damage.what)) == (shard.name, True)
    with pytest.raises(Resumable, match=r"shard-00000\.tar .* four times over"):
        Reader(manifest).image(0)
    if path.stat().st_size != shard.bytes:
        with pytest.raises(UserError, match=r"shard-00000\.tar .* bytes instead of"):
            check_shards(manifest)
    if what not in ("cut at a member and closed", "a byte of the contents"):  # which only a manifest can tell
        with pytest.raises(UserError, match=r"^shard-00000\.tar: "):
            index_folder(path.parent)


def test_a_manifest_over_a_closed_cut_still_counts_its_samples(make_set: MakeSet) -> None:
    """Whoever hashes the cut shard and keeps the count: the reader walks the headers and sees."""
    manifest = make_set((8,))
    path = Path(manifest.root) / manifest.shards[0].name
    path.write_bytes(DAMAGE["cut at a member and closed"](path.read_bytes(), member_offsets(path.read_bytes())[8]))
    described, _ = index_folder(path.parent)
    wrong = replace(described, shards=(replace(described.shards[0], samples=8),))
    with pytest.raises(UserError, match="has 4 samples, its manifest says 8"):
        Reader(wrong).image(0)
