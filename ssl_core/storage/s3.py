"""Objects in S3 or anything that speaks its protocol: listed, read whole, moved in parallel parts.

Endpoint, region and credentials come from boto3's standard chain (environment, profile, instance). What fails for a
while (resets, timeouts, 5xx, 429, bodies that break off) is tried again after a pause that doubles and is drawn at
random below its bound; what cannot get better (no such key, no permission) is said at once.

An object appears whole or not at all. What a killed process had sent of one stays invisible in the bucket, and takes
room, until `abort_uploads` removes it.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar, cast

from ssl_core.errors import Resumable, UserError
from ssl_core.storage.local import local_path

SCHEME = "s3://"

_PART_BYTES = 8 << 20
_BUFFER_BYTES = 256 << 10
_MOST_PARTS = 10_000  # of one upload, says S3
_THREADS = 8  # parts of one object at a time
_ATTEMPTS = 8
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 10.0
_MOST_KEYS = 1000  # of one call that removes objects, says S3
_TEMPORARY_CODES = (
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "ConditionalRequestConflict",
)
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


Folder = Path | S3Location
"""A local folder or a bucket's."""


def folder_at(location: str) -> Folder:
    """The folder that a location names; raises UserError where it has another scheme."""
    return S3Location.of(location) if is_s3(location) else local_path(location)


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
    for page in _pages(location, "list_objects_v2", ContinuationToken="NextContinuationToken"):
        for entry in page.get("Contents", ()):
            yield str(entry["Key"]).removeprefix(prefix), int(entry["Size"])


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


@dataclass(frozen=True, kw_only=True)
class ObjectFacts:
    """What a store knows of an object besides its bytes."""

    size: int
    metadata: Mapping[str, str]


def look_up(location: S3Location) -> ObjectFacts | None:
    """An object's facts, or None where there is no such object."""
    try:
        answer = _persist(
            f"look at {location}", lambda: _client().head_object(Bucket=location.bucket, Key=location.key)
        )
    except _Missing:
        return None
    return ObjectFacts(size=int(answer["ContentLength"]), metadata=dict(answer["Metadata"]))


def write_bytes(location: S3Location, data: bytes, *, metadata: Mapping[str, str] | None = None) -> None:
    """Make a small object, or replace it."""
    place: dict[str, Any] = {"Bucket": location.bucket, "Key": location.key, "Metadata": dict(metadata or {})}
    _persist(f"write {location}", lambda: _client().put_object(Body=data, **place))


def create(location: S3Location, data: bytes) -> bool:
    """Make a small object, unless there is one; whether what is there now is `data`.

    Two processes that make different objects of one name: one of them succeeds.
    """
    place: dict[str, Any] = {"Bucket": location.bucket, "Key": location.key, "IfNoneMatch": "*"}
    try:
        _persist(f"write {location}", lambda: _client().put_object(Body=data, **place))
    except _Exists:  # somebody else's, or this one's: the answer to the first try was lost
        return read_bytes(location) == data
    return True


def remove(location: S3Location, names: Iterable[str]) -> None:
    """Remove objects below a location; those that are gone already are no error."""
    keys = [(location / name).key for name in names]
    for start in range(0, len(keys), _MOST_KEYS):
        listed = {"Objects": [{"Key": key} for key in keys[start : start + _MOST_KEYS]], "Quiet": True}
        answer = _persist(
            f"remove objects of {location}",
            lambda listed=listed: _client().delete_objects(Bucket=location.bucket, Delete=listed),
        )
        for error in answer.get("Errors", ()):
            raise UserError(f"cannot remove {error.get('Key')}: {error.get('Code')}: check the credentials")


def upload(path: Path, location: S3Location, *, metadata: Mapping[str, str]) -> None:
    """Make an object of a file's bytes, or replace it; large files go in parallel parts.

    On an error, what was sent is removed again.

    Args:
        path: the file.
        location: the object.
        metadata: kept with the object, for `look_up`.

    Raises:
        UserError: no such bucket, or no permission.
        Resumable: the store did not answer well, many times over.
    """
    size = path.stat().st_size
    if size <= _PART_BYTES:
        write_bytes(location, path.read_bytes(), metadata=metadata)
        return
    what, place = f"write {location}", {"Bucket": location.bucket, "Key": location.key}
    begun = _persist(what, lambda: _client().create_multipart_upload(**place, Metadata=dict(metadata)))
    place["UploadId"] = str(begun["UploadId"])
    part_bytes = max(_PART_BYTES, -(-size // _MOST_PARTS))

    def send(number: int) -> dict[str, Any]:
        with path.open("rb") as file:
            data = os.pread(file.fileno(), part_bytes, (number - 1) * part_bytes)
        sent = _persist(what, lambda: _client().upload_part(**place, PartNumber=number, Body=data))
        return {"PartNumber": number, "ETag": sent["ETag"]}

    try:
        numbers = range(1, -(-size // part_bytes) + 1)
        with ThreadPoolExecutor(min(_THREADS, len(numbers)), thread_name_prefix="s3") as pool:
            try:
                parts = list(pool.map(send, numbers))
            finally:
                pool.shutdown(cancel_futures=True)
        _persist(what, lambda: _client().complete_multipart_upload(**place, MultipartUpload={"Parts": parts}))
    except _Missing as error:
        if look_up(location) != ObjectFacts(size=size, metadata=dict(metadata)):  # else: done, the answer was lost
            raise Resumable(f"cannot {what}: somebody removed the upload: the same command tries again") from error
    except BaseException:
        with suppress(UserError, Resumable):  # what went wrong first is what is said
            _abort(location, place["UploadId"])
        raise


def abort_uploads(location: S3Location) -> int:
    """Remove what was sent below a location of objects that were never completed; how many there were.

    Only for who knows that nobody is writing there now.
    """
    prefix, found = f"{location.key}/".lstrip("/"), 0
    markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
    for page in _pages(location, "list_multipart_uploads", **markers):
        for entry in page.get("Uploads", ()):
            if str(entry["Key"]).startswith(prefix):
                _abort(S3Location(location.bucket, str(entry["Key"])), str(entry["UploadId"]))
                found += 1
    return found


def _abort(location: S3Location, upload_id: str) -> None:
    place = {"Bucket": location.bucket, "Key": location.key, "UploadId": upload_id}
    with suppress(_Missing):  # it is gone already
        _persist(f"remove an upload of {location}", lambda: _client().abort_multipart_upload(**place))


def _pages(location: S3Location, operation: str, **markers: str) -> Iterator[Mapping[str, Any]]:
    """What a listing below a location answers, page by page; `markers` says which field of one is which of the next."""
    mark: dict[str, str] = {}

    def ask() -> Any:
        prefix = f"{location.key}/".lstrip("/")
        return getattr(_client(), operation)(Bucket=location.bucket, Prefix=prefix, **mark)

    while True:
        page = _persist(f"list {location}", ask)
        yield page
        if not page.get("IsTruncated"):
            return
        mark = {name: page[field] for name, field in markers.items()}


class _Missing(Exception):
    """No such object."""


class _Exists(Exception):
    """There is such an object already."""


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
    if code in ("NoSuchKey", "NoSuchUpload", "404"):
        raise _Missing from error
    if status == 412:
        raise _Exists from error
    if code == "NoSuchBucket":
        raise UserError(f"cannot {what}: there is no such bucket") from error
    raise UserError(f"cannot {what}: {_said(error)}: check the credentials and the endpoint") from error


def _said(error: Any) -> str:
    answer = cast(dict[str, Any], error.response).get("Error", {})
    return f"{answer.get('Code', 'unknown')} ({answer.get('Message', 'no message')})"


def _client() -> Any:
    chain = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    with _making_a_client:  # making one is not thread-safe, using it is; a forked process makes its own
        return _client_of(os.getpid(), chain)


@cache
def _client_of(process: int, chain: tuple[tuple[str, str], ...]) -> Any:
    """The client of a process, for what the environment says of endpoint and credentials."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=10,
        read_timeout=30,
        retries={"mode": "standard", "total_max_attempts": 1},  # `_persist` does it, bodies included
        max_pool_connections=8 * _THREADS,  # readers of loose images, and uploads beside them
    )
    return cast(Any, boto3).Session().client("s3", config=config)
