"""Are the shards what the manifest says? Present and of the right size, and, byte for byte, of the right sha256."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ssl_core.data.manifest import Manifest, ShardInfo
from ssl_core.errors import Resumable, UserError
from ssl_core.storage import s3
from ssl_core.storage.cache import CacheConfig, DifferentBytes, ObjectCache
from ssl_core.storage.local import stamped_sha256

_ATTEMPTS = 4  # the first and three more
_REMEDY = "restore it, or run python -m pipelines.pack index={root} if the change was meant"


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A shard that is not what its manifest says, and how."""

    shard: ShardInfo
    what: str


def check_shards(manifest: Manifest) -> None:
    """Every shard is there and has its size; raises UserError that names the first that does not."""
    listed = dict(s3.list_sizes(s3.S3Location.of(manifest.root))) if s3.is_s3(manifest.root) else None
    for shard in manifest.shards:
        if listed is None:
            what = _size_difference(Path(manifest.root) / shard.name, shard)
        else:
            what = _wrong_size(listed[shard.name], shard) if shard.name in listed else "is missing"
        if what:
            raise UserError(f"shard {shard.name} in {manifest.root} {what}: {_REMEDY.format(root=manifest.root)}")


def verify_shards(
    manifest: Manifest,
    *,
    names: Iterable[str] | None = None,
    max_bytes: int | None = None,
    threads: int | None = None,
) -> None:
    """Hash shards and compare; a shard whose stamp holds is not hashed again.

    Args:
        manifest: the data set.
        names: only these shards.
        max_bytes: stop before the shard that would exceed so many bytes; the first is always looked at.
        threads: how many shards are hashed at a time.

    Raises:
        UserError: names the first shard that differs, what was expected, what was found and what to do.
    """
    wanted = None if names is None else set(names)
    chosen = [shard for shard in manifest.shards if wanted is None or shard.name in wanted]
    if max_bytes is not None:
        total = 0
        for count, shard in enumerate(chosen):
            total += shard.bytes
            if count and total > max_bytes:
                chosen = chosen[:count]
                break
    damaged = find_damage(manifest, chosen, threads=threads)
    if damaged:
        first = f"shard {damaged[0].shard.name} in {manifest.root} {damaged[0].what}"
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise UserError(f"{first}{more}: {_REMEDY.format(root=manifest.root)}")


def find_damage(
    manifest: Manifest,
    shards: Iterable[ShardInfo],
    *,
    fresh: bool = False,
    threads: int | None = None,
    done: Callable[[ShardInfo], None] = lambda shard: None,
) -> list[Damage]:
    """The shards that differ from the manifest, in the order given.

    Args:
        manifest: the data set.
        shards: which of its shards to look at.
        fresh: read every byte, even where a stamp holds.
        threads: how many shards are hashed at a time.
        done: called after each shard.
    """

    def look(shard: ShardInfo) -> Damage | None:
        what = _difference_in(manifest.root, shard, fresh=fresh)
        done(shard)
        return Damage(shard=shard, what=what) if what else None

    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        return [damage for damage in pool.map(look, shards) if damage is not None]


def _difference_in(root: str, shard: ShardInfo, *, fresh: bool) -> str | None:
    if not s3.is_s3(root):
        return difference(Path(root) / shard.name, shard, fresh=fresh)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "shard"
        try:
            s3.download(s3.S3Location.of(root) / shard.name, path, size=shard.bytes)
        except s3.MissingObject:
            return "is missing"
        return difference(path, shard, fresh=True)


def difference(path: Path, shard: ShardInfo, *, fresh: bool = False) -> str | None:
    """How the file at `path` differs from what the manifest says of a shard; None where it does not."""
    what = _size_difference(path, shard)
    if what:
        return what
    try:
        found = stamped_sha256(path, fresh=fresh)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if found == shard.sha256:
        return None
    return f"differs from its checksum (sha256 {found[:16]}… instead of {shard.sha256[:16]}…)"


def _size_difference(path: Path, shard: ShardInfo) -> str | None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return _wrong_size(size, shard)


def _wrong_size(size: int, shard: ShardInfo) -> str | None:
    return None if size == shard.bytes else f"has {size:,} bytes instead of {shard.bytes:,}"


Shards = Callable[[ShardInfo], Path]
"""Gives a local path that holds a shard's verified bytes."""


def shards_of(manifest: Manifest, *, verify: bool = True, cache: CacheConfig | None = None) -> Shards:
    """The shards of a data set, wherever they lie.

    Args:
        manifest: the data set.
        verify: whether local shards are hashed; a bucket's always are.
        cache: where a bucket's shards are kept.
    """
    if s3.is_s3(manifest.root):
        return CachedShards(root=s3.S3Location.of(manifest.root), cache=ObjectCache(cache or CacheConfig()))
    return LocalShards(root=Path(manifest.root), verify=verify)


@dataclass(frozen=True, kw_only=True)
class CachedShards:
    """Shards in a bucket, fetched whole into a cache on local disk; its files may go again at any time."""

    root: s3.S3Location
    cache: ObjectCache

    def __call__(self, shard: ShardInfo) -> Path:
        """The path of a shard's copy.

        Raises:
            Resumable: the store does not answer well, or its bytes are not what the manifest says, four times over.
            UserError: there is no such object, or no permission.
        """
        place = self.root / shard.name
        try:
            return self.cache.get(
                shard.sha256, size=shard.bytes, fetch=lambda path: s3.download(place, path, size=shard.bytes)
            )
        except DifferentBytes as error:
            what = f"differs from its checksum (sha256 {shard.sha256[:16]}…)"
            raise Resumable(f"shard {place} {what}, four times over: {_REMEDY.format(root=self.root)}") from error


@dataclass(frozen=True, kw_only=True)
class LocalShards:
    """Shards in a local folder, read in place: gives the path of a shard once its bytes are verified."""

    root: Path
    verify: bool = True

    def __call__(self, shard: ShardInfo) -> Path:
        """The shard's path.

        Raises:
            Resumable: its bytes are not what the manifest says, after three more looks.
        """
        path = self.root / shard.name
        what = None
        for attempt in range(_ATTEMPTS):
            what = difference(path, shard, fresh=attempt > 0) if self.verify else _size_difference(path, shard)
            if what is None:
                return path
        raise Resumable(f"shard {shard.name} in {self.root} {what}, four times over: {_REMEDY.format(root=self.root)}")
