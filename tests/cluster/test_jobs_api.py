"""The jobs API's address, its token, and its refusals in words."""

import os
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cluster.command_line import BadInput
from cluster.jobs_api import FIRST_ANSWER_SECONDS, JobsApi, Token, address_of, find_token
from tests.cluster.fake_cluster import TOKEN, FakeCluster, serving


@pytest.mark.parametrize(
    ("given", "environment", "found"),
    [
        ("http://head:8265/", {"RAY_API_SERVER_ADDRESS": "http://other"}, "http://head:8265"),
        ("head:8265", {}, "http://head:8265"),
        ("https://proxy/ray/", {}, "https://proxy/ray"),
        (None, {"RAY_API_SERVER_ADDRESS": "http://a:1", "RAY_ADDRESS": "http://b:1"}, "http://a:1"),
        (None, {"RAY_ADDRESS": "http://b:1"}, "http://b:1"),
    ],
)
def test_the_address_that_is_given_counts(
    given: str | None, environment: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert address_of(given) == found


def test_an_address_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # of the cluster's table, which is no HTTP
    with pytest.raises(BadInput, match="address= is missing"):
        address_of(None)
    with pytest.raises(BadInput, match="write http://<head>:8265"):
        address_of("ray://head:10001")


def test_the_token_is_found_where_ray_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("of-home\n")
    (tmp_path / "token").write_text("of-a-file")
    assert find_token() == Token(value="of-home", source=str(tmp_path / ".ray/auth_token"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert find_token() == Token(value="of-a-file", source=str(tmp_path / "token"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "itself")
    assert find_token() == Token(value="itself", source="RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        find_token()


@pytest.mark.parametrize("token", [b"s3cr3t\nsecond", b"s3cr3t second", "s3cr3t-τ".encode(), b"s3cr3t\xff"])
def test_a_token_that_is_no_word_is_refused_and_not_shown(
    token: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_bytes(token)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(BadInput, match=rf"^the token of {tmp_path}/token is not one word of ASCII: [^3]*$"):
        find_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", os.fsdecode(token))
    with pytest.raises(BadInput, match=r"^the token of RAY_AUTH_TOKEN is not one word of ASCII: [^3]*$"):
        find_token()


def refused(cluster_address: str, token: Token | None) -> str:
    with pytest.raises(RuntimeError) as caught:
        JobsApi(cluster_address, token).check()
    return str(caught.value)


def test_a_missing_and_a_wrong_token_are_one_line_each() -> None:
    with serving(FakeCluster()) as cluster:
        assert "(401): the cluster wants a token: set RAY_AUTH_TOKEN_PATH" in refused(cluster.address, None)
        assert "the token of here (403)" in refused(cluster.address, Token(value="another", source="here"))
        cluster.redirects = True
        assert "302" in refused(cluster.address, Token(value=TOKEN, source="here"))
        assert not [one for one in cluster.asked if "elsewhere" in one]  # the token is not carried along


@contextmanager
def listening(kind: str) -> Generator[str]:
    """An address on which nobody listens, nobody answers, or somebody never comes to the end of an answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                while True:
                    connection.send(b"H")
                    time.sleep(0.05)

        if kind == "drips":
            threading.Thread(target=drip, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if kind == "refuses":
            server.close()
        yield address


@pytest.mark.parametrize("kind", ["refuses", "swallows", "drips"])
def test_an_address_that_does_not_answer_is_said_within_ten_seconds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.jobs_api.FIRST_ANSWER_SECONDS", 0.5)
    assert FIRST_ANSWER_SECONDS + 1 < 10
    with listening(kind) as address:
        begun = time.monotonic()
        assert f"{address} does not answer" in refused(address, None)
        assert time.monotonic() - begun < 5
