"""Objects are written whole or not at all, and what a writer that failed had sent is removed."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from cluster.object_store import ObjectStore
from ssl_core.errors import Resumable, UserError
from ssl_core.storage import s3
from ssl_core.storage.s3 import ObjectFacts, S3Location
from tests.faulty_proxy import faulty_proxy

pytestmark = pytest.mark.s3
BUCKET = "written"
PART = 5 << 20  # the least that S3 takes
LOCATION = S3Location(BUCKET, "a/set.tar")


@pytest.fixture
def client(s3_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Generator[Any]:
    """A client of an endpoint with an empty bucket."""
    monkeypatch.setattr(s3, "_PART_BYTES", PART)
    made: Any = boto3.client("s3", **s3_store.client_arguments)
    if BUCKET not in {one["Name"] for one in made.list_buckets()["Buckets"]}:
        made.create_bucket(Bucket=BUCKET)
    yield made
    for name, _ in list(s3.list_sizes(S3Location(BUCKET, ""))):
        made.delete_object(Bucket=BUCKET, Key=name)
    s3.abort_uploads(S3Location(BUCKET, ""))


def uploads(client: Any) -> list[str]:
    return [entry["Key"] for entry in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())]


def file_of(folder: Path, size: int) -> Path:
    path = folder / "file"
    path.write_bytes((bytes(range(251)) * (size // 251 + 1))[:size])
    return path


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 2 * PART + 1])
def test_what_is_uploaded_is_there(size: int, client: Any, tmp_path: Path) -> None:
    path = file_of(tmp_path, size)
    assert s3.look_up(LOCATION) is None
    s3.upload(path, LOCATION, metadata={"sha256": "abc"})
    assert s3.look_up(LOCATION) == ObjectFacts(size=size, metadata={"sha256": "abc"})
    assert s3.read_bytes(LOCATION) == path.read_bytes()
    assert uploads(client) == []


def test_faults_change_nothing(
    client: Any, endpoint: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost answers among them: one to the last request of an upload does not mean that it failed."""
    with faulty_proxy(endpoint.endpoint) as faults:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faults.url)
        path = file_of(tmp_path, 2 * PART + 1)
        for number in range(3):
            s3.upload(path, LOCATION / f"{number}.tar", metadata={"sha256": "abc"})
        s3.abort_uploads(LOCATION)  # a lost answer to the first request of an upload leaves one that nobody can name
    assert faults.total > 8
    assert uploads(client) == []
    for number in range(3):
        found = client.get_object(Bucket=BUCKET, Key=f"{LOCATION.key}/{number}.tar")
        assert found["Body"].read() == path.read_bytes()
        assert found["Metadata"] == {"sha256": "abc"}
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.endpoint)


def test_an_upload_that_fails_leaves_nothing(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            def fail(**arguments: Any) -> Any:
                if arguments["PartNumber"] == 3:
                    raise ConnectionResetError("gone")
                return client.upload_part(**arguments)

            return fail if name == "upload_part" else getattr(client, name)

    monkeypatch.setattr(s3, "_client", Failing)
    with pytest.raises(Resumable, match=rf"cannot write {LOCATION}, 8 times over, the last time: gone"):
        s3.upload(file_of(tmp_path, 2 * PART + 1), LOCATION, metadata={})
    assert uploads(client) == []
    assert s3.look_up(LOCATION) is None


def test_uploads_that_a_kill_left_are_found_and_removed(client: Any) -> None:
    for key in ("a/x.tar", "a/b/y.tar", "ab/z.tar"):
        client.create_multipart_upload(Bucket=BUCKET, Key=key)
    assert s3.abort_uploads(S3Location(BUCKET, "a")) == 2
    assert uploads(client) == ["ab/z.tar"]
    assert s3.abort_uploads(S3Location(BUCKET, "")) == 1
    assert uploads(client) == []


def test_a_bucket_that_is_not_there_is_said(client: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write s3://nowhere/x: there is no such bucket"):
        s3.upload(file_of(tmp_path, 10), S3Location("nowhere", "x"), metadata={})


def test_listings_go_on_after_their_first_page_of_a_thousand(client: Any) -> None:
    names = [f"{number:04d}" for number in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        for name in names:
            pool.submit(client.put_object, Bucket=BUCKET, Key=f"many/{name}", Body=b"x")
            pool.submit(client.create_multipart_upload, Bucket=BUCKET, Key=f"many/{name}.tar")
    assert list(s3.list_sizes(S3Location(BUCKET, "many"))) == [(name, 1) for name in names]
    assert s3.abort_uploads(S3Location(BUCKET, "many")) == len(names)
    assert uploads(client) == []
