"""Objects in S3 or anything that speaks its protocol: listed, read whole, downloaded in parallel ranges.

Endpoint, region and credentials come from boto3's standard chain (environment, profile, instance). What fails for a
while (resets, timeouts, 5xx, 429, bodies that break off) is tried again after a pause that doubles and is drawn at
random below its bound; what cannot get better (no such key, no permission) is said at once.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar, cast

from ssl_core.errors import Resumable, UserError

SCHEME = "s3://"

_PART_BYTES = 8 << 20
_BUFFER_BYTES = 256 << 10
_THREADS = 8  # ranges of one object at a time
_ATTEMPTS = 8
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0
_TEMPORARY_CODES = ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequestsException")
_making_a_client = Lock()
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class S3Location:
    """A bucket and a key, or the beginning of keys."""

    bucket: str
    key: str

    @classmethod
    def of(cls, location: str) -> "S3Location":
        """Read `s3://bucket/key`; raises UserError where it names no bucket."""
        bucket, _, key = location.removeprefix(SCHEME).partition("/")
        if not location.startswith(SCHEME) or not bucket:
            raise UserError(f"{location}: write s3://<bucket>/<folder>")
        return cls(bucket, key.strip("/"))

    def __truediv__(self, name: str) -> "S3Location":
        return S3Location(self.bucket, f"{self.key}/{name}".lstrip("/"))

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"


class MissingObject(UserError):
    """There is no such object."""


def is_s3(location: str | Path) -> bool:
    """Whether a location is an object store's."""
    return str(location).startswith(SCHEME)


def read_bytes(location: S3Location) -> bytes | None:
    """A small object's bytes, or None where there is no such object."""
    try:
        return _persist(f"read {location}", lambda: _body(location))
    except _Missing:
        return None


def list_sizes(location: S3Location) -> Iterator[tuple[str, int]]:
    """(name below the location, bytes) of each object below it, in order of names."""
    prefix = f"{location.key}/".lstrip("/")
    token: dict[str, str] = {}
    while True:
        page = _persist(
            f"list {location}",
            lambda token=token: _client().list_objects_v2(Bucket=location.bucket, Prefix=prefix, **token),
        )
        for entry in page.get("Contents", ()):
            yield str(entry["Key"]).removeprefix(prefix), int(entry["Size"])
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}


def download(location: S3Location, path: Path, *, size: int) -> str:
    """Write an object's bytes to a file; their sha256, in hexadecimal.

    Args:
        location: the object.
        path: written anew.
        size: bytes to read; a shorter object is an error, of a longer one the beginning is written.

    Raises:
        MissingObject: there is no such object.
        UserError: no permission.
        Resumable: the store did not answer well, many times over.
    """
    parts = [range(start, min(start + _PART_BYTES, size)) for start in range(0, size, _PART_BYTES)]
    digest = hashlib.sha256()
    with path.open("w+b") as file:
        file.truncate(size)

        def fetch(part: range) -> range:
            _persist(f"read {location}", lambda: _copy_range(location, part, file.fileno()))
            return part

        try:
            with ThreadPoolExecutor(max(1, min(_THREADS, len(parts))), thread_name_prefix="s3") as pool:
                for part in pool.map(fetch, parts):  # hashed while later parts are on their way
                    with mmap(file.fileno(), len(part), offset=part.start, access=ACCESS_READ) as written:
                        digest.update(written)
        except _Missing as missing:
            raise MissingObject(f"{location}: there is no such object: was the data set moved or deleted?") from missing
    return digest.hexdigest()


class _Missing(Exception):
    """No such object."""


class _Broken(Exception):
    """A body that is not as long as it should be."""


def _body(location: S3Location) -> bytes:
    return _client().get_object(Bucket=location.bucket, Key=location.key)["Body"].read()


def _copy_range(location: S3Location, part: range, file: int) -> None:
    """Write a part of an object where it belongs, through a buffer that fits a core's cache."""
    wanted = f"bytes={part.start}-{part.stop - 1}"
    body = _client().get_object(Bucket=location.bucket, Key=location.key, Range=wanted)["Body"]
    place = part.start
    with memoryview(bytearray(_BUFFER_BYTES)) as buffer:
        while place < part.stop and (count := body.readinto(buffer[: part.stop - place])):
            os.pwrite(file, buffer[:count], place)
            place += count
    if place < part.stop:
        raise _Broken(f"{place - part.start:,} bytes came instead of {len(part):,}")


def _persist(what: str, call: Callable[[], _Answer]) -> _Answer:
    """Call until it works, with pauses; raises Resumable with the last reason."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    problem = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            bound = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            time.sleep(bound * secrets.randbelow(1001) / 1000)  # drawn for everyone by itself, or all would ask at once
        try:
            return call()
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise UserError(
                f"cannot {what}: {error}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile"
            ) from error
        except ClientError as error:
            problem = _said(error)
            _refuse_what_stays_wrong(what, error)
        except (BotoCoreError, _Broken, OSError) as error:
            problem = str(error) or type(error).__name__
    raise Resumable(f"cannot {what}, {_ATTEMPTS} times over, the last time: {problem}: the same command tries again")


def _refuse_what_stays_wrong(what: str, error: Any) -> None:
    answer = cast(dict[str, Any], error.response)
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
    code = str(answer.get("Error", {}).get("Code", ""))
    if status in (408, 429) or status >= 500 or code in _TEMPORARY_CODES:
        return
    if code in ("NoSuchKey", "404"):
        raise _Missing from error
    if code == "NoSuchBucket":
        raise UserError(f"cannot {what}: there is no such bucket") from error
    raise UserError(f"cannot {what}: {_said(error)}: check the credentials and the endpoint") from error


def _said(error: Any) -> str:
    answer = cast(dict[str, Any], error.response).get("Error", {})
    return f"{answer.get('Code', 'unknown')} ({answer.get('Message', 'no message')})"


def _client() -> Any:
    with _making_a_client:  # making one is not thread-safe, using it is; a forked process makes its own
        return _client_of_this_process(os.getpid())


@cache
def _client_of_this_process(process: int) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=10,
        read_timeout=30,
        retries={"mode": "standard", "total_max_attempts": 1},  # `_persist` does it, bodies included
        max_pool_connections=4 * _THREADS,
    )
    return cast(Any, boto3).Session().client("s3", config=config)
