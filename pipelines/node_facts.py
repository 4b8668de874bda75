"""What `preflight` asks of a node: versions, disk, shared memory, a shard of the data, the store of checkpoints.

Run by scouts on the nodes and by the driver for itself. Nothing here needs torch or Ray, and nothing is left behind.
"""

import hashlib
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files as resources
from importlib.resources.abc import Traversable
from pathlib import Path

from ssl_core.data.integrity import find_damage
from ssl_core.data.manifest import Manifest
from ssl_core.errors import UserError
from ssl_core.storage.cache import CacheConfig
from ssl_core.storage.files import Files, files_at
from ssl_core.storage.local import cache_folder, made_for_now
from ssl_core.storage.s3 import Folder

_LARGE_BYTES = 1 << 20
_OURS = ("pipelines", "ssl_core", "configs")
_DISTRIBUTIONS = ("torch", "ray", "ssl-pipelines")
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True)
class Space:
    """What one file system of a node has free, and what the run wants of it."""

    folder: str
    what: tuple[str, ...]
    needed_bytes: int
    free_bytes: int


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """Shards that were read and had their checksums."""

    num_bytes: int
    seconds: float


def versions() -> dict[str, str]:
    """Of what has to be the same everywhere; our own with a digest of its source, since checkouts differ within one."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "from a folder"
    found["ssl-pipelines"] += f" ({_source_digest()[:8]})"
    return found


def _source_digest() -> str:
    """sha256 of the modules and the configuration."""
    digest = hashlib.sha256()
    for package in _OURS:
        for name, data in sorted(_sources(resources(package), package)):
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def _sources(folder: Traversable, name: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _sources(entry, f"{name}/{entry.name}")
        elif entry.name.endswith((".py", ".yaml")):
            found.append((f"{name}/{entry.name}", entry.read_bytes()))
    return found


def fetch(parts: Sequence[Manifest]) -> Fetched:
    """Read all shards of these manifests, from the bucket or in place, and compare; nothing of it is kept.

    Raises:
        UserError: one is not what the manifest says, or there is none.
        Resumable: the bucket does not answer well.
    """
    began = time.monotonic()
    for part in parts:
        for damage in find_damage(part, part.shards, fresh=True, threads=1):
            raise UserError(
                f"shard {damage.shard.name} in {part.root} {damage.what}: is it the folder that the manifest was made "
                "for? python -m pipelines.pack verify=… reads all of it"
            )
    return Fetched(num_bytes=sum(part.num_bytes for part in parts), seconds=time.monotonic() - began)


def cache_space(config: CacheConfig, wanted: Mapping[str, int]) -> Space:
    """The disk of a bucket's shards: what the cache will grow by, which makes room for new ones at its limit.

    Args:
        config: of the cache.
        wanted: bytes of each shard by its sha256, which is its name there.
    """
    folder = Path(config.folder).expanduser() if config.folder else cache_folder() / "shards"
    there = _sizes(folder) if folder.is_dir() else {}
    used = sum(there.values())
    missing = sum(size for sha256, size in wanted.items() if sha256 not in there)
    needed = max(0, min(config.max_bytes, used + missing) - used)
    return _space(folder, "the shards' cache", needed)


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes by name."""
    found: dict[str, int] = {}
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # it became whole meanwhile, or made room
            found[path.name] = path.stat().st_size
    return found


def disk_spaces(
    cache_config: CacheConfig, wanted: Mapping[str, int], checkpoints: Folder, checkpoint_bytes: int, kept: int
) -> list[Space]:
    """What the run wants of this node's disks, one entry a file system.

    Args:
        cache_config: of the bucket's shards.
        wanted: bytes of each of them by its sha256.
        checkpoints: where they are kept; those for a bucket are written into the temporary folder first.
        checkpoint_bytes: of one.
        kept: how many there are at most.
    """
    spaces = [cache_space(cache_config, wanted)] if wanted else []
    if isinstance(checkpoints, Path):
        spaces.append(_space(checkpoints, "checkpoints", kept * checkpoint_bytes))
    else:
        spaces.append(_space(Path(tempfile.gettempdir()), "a checkpoint on its way", checkpoint_bytes))
    return _joined(spaces)


def shared_memory() -> Space | None:
    """Memory that processes share by files; None where the system has none."""
    return _space(SHARED_MEMORY, "shared memory", 0) if SHARED_MEMORY.is_dir() else None


def _space(folder: Path, what: str, needed_bytes: int) -> Space:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    return Space(folder=str(folder), what=(what,), needed_bytes=needed_bytes, free_bytes=free)


def _joined(spaces: Sequence[Space]) -> list[Space]:
    """Those on one file system as one."""
    found: dict[int, Space] = {}
    for space in spaces:
        path = Path(space.folder)
        device = next(one for one in (path, *path.absolute().parents) if one.exists()).stat().st_dev
        if device in found:
            first = found[device]
            space = Space(
                folder=first.folder,
                what=(*first.what, *space.what),
                needed_bytes=first.needed_bytes + space.needed_bytes,
                free_bytes=first.free_bytes,
            )
        found[device] = space
    return list(found.values())


def try_store(checkpoints: Folder) -> float:
    """Write, read, make only once, list and remove below the folder where checkpoints go; seconds that it took.

    Raises:
        UserError, OSError: the store does not do something that checkpoints need; says what.
        Resumable: it does not answer well.
    """
    began = time.monotonic()
    with made_for_now(checkpoints) if isinstance(checkpoints, Path) else nullcontext():
        try_files(files_at(checkpoints), str(checkpoints))
    return time.monotonic() - began


def try_files(store: Files, where: str) -> None:
    """As `try_store`; `where` is what to call the store."""
    folder = f"preflight-{uuid.uuid4().hex[:12]}"
    small, large = f"{folder}/small", f"{folder}/large"
    try:
        _use(store, small, large, where)
        store.remove([small, large])
    except BaseException:
        with suppress(Exception):  # what went wrong first is more important
            store.remove([small, large])
        raise
    if store.read(small) is not None:
        raise UserError(f"{where} still has a file that was removed: old checkpoints would fill the store")


def _use(store: Files, small: str, large: str, where: str) -> None:
    data = uuid.uuid4().bytes * (_LARGE_BYTES // 16)
    if not store.create(small, b"first"):
        raise UserError(f"{where} has a file of a name that was made up just now: is it a store for files?")
    if store.create(small, b"second") or store.read(small) != b"first":
        raise UserError(
            f"{where}: a file was made in the place of another one (a bucket has to know `If-None-Match`), so a "
            "worker that was given up for dead could spoil the run: use another store"
        )
    with store.writing(large) as path:
        path.write_bytes(data)
    with store.reading(large) as path:
        if path.read_bytes() != data:
            raise UserError(f"{where} gave other bytes than were written: do not keep checkpoints there")
    if not {small, large} <= set(store.names()):
        raise UserError(f"{where} does not list files that were just written: use a store that does")
