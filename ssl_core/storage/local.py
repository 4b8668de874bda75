"""Local files: which locations are read at all, files that appear whole or not at all, hashes that are not taken twice.

A *stamp* remembers the sha256 of a file as long as its path, size and times stay the same, so that a data set is hashed
once per machine and not once per process. Stamps lie in a cache folder and may be deleted at any time.
"""

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssl_core.errors import UserError

CACHE_VARIABLE = "SSL_PIPELINES_CACHE"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_SETTLED_NANOSECONDS = 2_000_000_000  # coarsest file times in use (FAT): a younger file may change and keep its times


def local_path(location: str) -> Path:
    """The local path that a location names: a plain path or `file://`.

    Raises:
        UserError: the location has another scheme; nothing of it is opened or run.
    """
    if not location.strip():
        raise UserError("the location is empty: name a folder")
    scheme = _SCHEME.match(location)
    if scheme is None:
        return Path(location).expanduser()
    if scheme[1].lower() == "file":
        return Path(re.sub(r"^file:(//)?", "", location, flags=re.IGNORECASE))
    if scheme[1].lower() == "s3":
        raise UserError(f"{location}: a bucket cannot be used here: name a local folder")
    raise UserError(f"{location}: {scheme[1]}: is not a kind of location that is read here: name a folder or file://…")


@contextmanager
def atomic_path(path: Path) -> Generator[Path, None, None]:
    """A temporary name beside `path`, for the body to write; it becomes `path`, synced, if the body ends well.

    On an error, the temporary file is removed and whatever `path` was before stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def publish_bytes(path: Path, data: bytes) -> None:
    """Write a small file so that it is never seen half written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextmanager
def made_for_now(folder: Path) -> Generator[None, None, None]:
    """Within: the folder exists; what had to be made for that, and is empty then, is removed again."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # somebody has put something into it
                path.rmdir()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """`$SSL_PIPELINES_CACHE`, else `~/.cache/ssl-pipelines`; it need not exist."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "ssl-pipelines"


def stamped_sha256(path: Path, *, fresh: bool = False) -> str:
    """The sha256 of a file, from its stamp where that still holds.

    Args:
        path: the file.
        fresh: hash the bytes even where a stamp holds.

    Raises:
        OSError: the file is missing or cannot be read.
    """
    started = time.time_ns()
    identity = _identity(path)
    stamp = (
        cache_folder()
        / "stamps"
        / f"{hashlib.sha256(identity['path'].encode(errors='surrogateescape')).hexdigest()}.json"
    )
    if not fresh and (known := _read_stamp(stamp, identity)) is not None:
        return known
    digest = sha256_file(path)
    settled = started - max(int(identity["mtime_ns"]), int(identity["ctime_ns"])) > _SETTLED_NANOSECONDS
    if settled and identity == _identity(path):
        _write_stamp(stamp, identity | {"sha256": digest})
    return digest


def _identity(path: Path) -> dict[str, str]:
    status = path.stat()
    return {
        "path": str(path.absolute()),
        "size": str(status.st_size),
        "mtime_ns": str(status.st_mtime_ns),
        "ctime_ns": str(status.st_ctime_ns),
    }


def _read_stamp(stamp: Path, identity: dict[str, str]) -> str | None:
    try:
        content = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    digest = content.pop("sha256", None) if isinstance(content, dict) else None
    return digest if isinstance(digest, str) and content == identity else None


def _write_stamp(stamp: Path, content: dict[str, str]) -> None:
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(stamp, json.dumps(content).encode())
    except OSError:
        pass  # a cache folder that is full or read-only costs time, not correctness
