"""Files of a bucket on local disk: whole, verified, bounded, shared by all processes of a node.

    <folder>/<sha256>           a whole object; appears by rename, so it is never half a file
    <folder>/<sha256>.lock      held by the one process that fetches it; its time is when the object was last asked for
    <folder>/<sha256>.partial   what that process has so far; one whose lock nobody holds was left by a kill

Locks are the kernel's (flock): they end with the process that holds them. The least recently used objects make room
for new ones, with their locks. One that is mapped into memory stays readable after that, as files do that are deleted
while open, and takes its place on the disk until it is let go.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ssl_core.errors import Resumable, UserError
from ssl_core.storage.local import cache_folder, stamped_sha256, sync_folder

_ATTEMPTS = 4  # the first and three more
_ROOM = "room"  # the file whose lock is held while room is made
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where a bucket's shards are kept, and how many bytes of them.

    Attributes:
        folder: None: `shards` below `$SSL_PIPELINES_CACHE` or `~/.cache/ssl-pipelines`.
        max_bytes: of all objects; only those that are being fetched at the same moment may exceed it for that long.
    """

    folder: str | None = None
    max_bytes: int = 100 * 10**9


class DifferentBytes(Exception):
    """What was fetched is not what was asked for, four times over."""


class ObjectCache:
    """A bounded folder of objects, each named by the sha256 of its bytes; safe under many processes and kills."""

    def __init__(self, config: CacheConfig) -> None:
        self.folder = Path(config.folder).expanduser() if config.folder else cache_folder() / "shards"
        self.max_bytes = config.max_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make {self.folder} ({error.strerror}): name another folder with data.cache=…"
            ) from error

    def get(self, sha256: str, *, size: int, fetch: Callable[[Path], str]) -> Path:
        """The path of a whole object.

        The file may be removed at any time to make room: who opens it must be ready to ask again.

        Args:
            sha256: of its bytes.
            size: bytes.
            fetch: writes them to the path it is given, and says their sha256.

        Raises:
            DifferentBytes: `fetch` wrote other bytes, four times over.
            Resumable: the disk is full, or not to be written to.
            UserError: the object is larger than the whole cache.
        """
        path, partial = self.folder / sha256, self.folder / f"{sha256}.partial"
        with self._locked(sha256):  # who waits here for another process finds the object when its turn comes
            if self._holds(path, sha256, size):
                return path
            try:
                self._make_room(size, partial)
                for _ in range(_ATTEMPTS):
                    if fetch(partial) == sha256 and partial.stat().st_size == size:
                        partial.replace(path)
                        sync_folder(self.folder)
                        return path
            except OSError as error:
                if error.errno not in _DISK_ERRORS:
                    raise
                raise Resumable(
                    f"cannot write into {self.folder} ({error.strerror}): free some space, lower data.cache_gb or name "
                    "another folder with data.cache=…"
                ) from error
            finally:
                partial.unlink(missing_ok=True)
        raise DifferentBytes

    @contextmanager
    def _locked(self, sha256: str) -> Generator[None]:
        while True:
            with (self.folder / f"{sha256}.lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_still_there(lock):
                    continue  # who made room removed it before it was ours: another one has its name, or none
                os.utime(lock.fileno())
                yield
                return

    def _holds(self, path: Path, sha256: str, size: int) -> bool:
        """Whether the object is there and, by its stamp or by its bytes, what it should be."""
        try:
            if path.stat().st_size == size and stamped_sha256(path) == sha256:
                return True
            path.unlink()  # damaged since
        except FileNotFoundError:
            pass
        return False

    def _make_room(self, size: int, partial: Path) -> None:
        """Remove what was used longest ago, and what killed processes left, until `partial` fits with `size` bytes."""
        if size > self.max_bytes:
            raise UserError(
                f"a shard of {size:,} bytes does not fit into the cache of {self.max_bytes:,} in {self.folder}: "
                "raise data.cache_gb"
            )
        with (self.folder / _ROOM).open("a") as room:  # one process at a time looks and removes
            fcntl.flock(room, fcntl.LOCK_EX)
            others = [entry for entry in self._entries() if entry.name != partial.stem]
            used = sum(entry.bytes for entry in others)
            for entry in sorted(others, key=lambda entry: entry.last_used):
                if (entry.is_partial or used + size > self.max_bytes) and self._remove(entry.name):
                    used -= entry.bytes
            with partial.open("wb") as file:
                file.truncate(size)  # counts from now on, for others that make room

    def _entries(self) -> "list[_Entry]":
        found: dict[str, _Entry] = {}
        for file in os.scandir(self.folder):
            name, _, kind = file.name.partition(".")
            entry = found.setdefault(name, _Entry(name=name))
            try:
                status = file.stat()
            except FileNotFoundError:
                continue  # it became whole, or went
            entry.bytes = max(entry.bytes, status.st_size)
            entry.is_partial |= kind == "partial"
            entry.last_used = max(entry.last_used, status.st_mtime_ns if kind == "lock" else 0)
        found.pop(_ROOM, None)
        for entry in found.values():
            if not entry.bytes:  # it may have become whole while the names were read, and been seen by neither name
                with suppress(FileNotFoundError):
                    entry.bytes = (self.folder / entry.name).stat().st_size
                    entry.is_partial = False
        return list(found.values())

    def _remove(self, sha256: str) -> bool:
        """Remove an object, or what is left of one, unless another process is at it; its lock goes last."""
        with (self.folder / f"{sha256}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            for kind in ("", ".partial", ".lock"):
                (self.folder / f"{sha256}{kind}").unlink(missing_ok=True)
            return True


@dataclass(kw_only=True)
class _Entry:
    """What the folder has of one object."""

    name: str
    bytes: int = 0
    is_partial: bool = False
    last_used: int = 0  # nanoseconds


def _is_still_there(lock: IO[str]) -> bool:
    """Whether an open file is the one that has its name."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
    except FileNotFoundError:
        return False
