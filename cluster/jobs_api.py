"""Ray's jobs API over plain HTTP: a dozen lines of JSON, the cluster's token, and errors in words.

Not `ray.job_submission.JobSubmissionClient`, which costs `import ray` (a second and more), prefers the environment's
RAY_ADDRESS to the address that it is given, has no time limits (an address that swallows packets holds it for minutes),
and caches the token of the first call. The API is the one that Ray documents; package upload is the one beside it that
`ray job submit` uses. Requests follow no redirect, which would carry the token along.
"""

import json
import os
import queue
import re
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from ipaddress import ip_address
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

from cluster.command_line import BadInput

FIRST_ANSWER_SECONDS = 8.0
_SECONDS = 60.0  # between two bytes, of any other request
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")
_NO_TOKEN = (
    "the cluster wants a token: set RAY_AUTH_TOKEN_PATH=<file> or RAY_AUTH_TOKEN, or put it into ~/.ray/auth_token"
)


class Unreachable(RuntimeError):
    """Nothing answered, or a server that is not well: it may be better soon."""


class NotFound(RuntimeError):
    """The API answers, but knows no such thing."""


class Exists(RuntimeError):
    """A job of that id was submitted before."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """What a request carries, and where it was found."""

    value: str
    source: str

    def __repr__(self) -> str:
        return f"Token(source={self.source!r})"


def find_token() -> Token | None:
    """The token where Ray looks for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Raises:
        BadInput: a file that is named cannot be read, or what was found cannot stand in a request's header.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return None
    if value := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return _token(value, "RAY_AUTH_TOKEN")
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named or "~/.ray/auth_token").expanduser()
    try:
        value = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        if named:
            raise BadInput(f"RAY_AUTH_TOKEN_PATH={named} cannot be read: {error.strerror}") from error
        return None
    return _token(value, str(path)) if value else None


def _token(value: str, source: str) -> Token:
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        raise BadInput(
            f"the token of {source} is not one word of ASCII: take the one that the cluster was started with"
        )
    return Token(value=value, source=source)


def address_of(text: str | None) -> str:
    """The address of a jobs API: as given, else of RAY_API_SERVER_ADDRESS, else RAY_ADDRESS where that is a URL.

    Raises:
        BadInput: there is none, or it is none.
    """
    address = text or os.environ.get("RAY_API_SERVER_ADDRESS") or _if_url(os.environ.get("RAY_ADDRESS"))
    if not address:
        raise BadInput("address= is missing: address=http://<head>:8265, or RAY_API_SERVER_ADDRESS in the environment")
    url = urlsplit(address if "://" in address else f"http://{address}")
    if url.username or url.password:
        raise BadInput(
            "address= has a user or password in it: a token is read from RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN"
        )
    if url.scheme not in ("http", "https") or not url.hostname:
        raise BadInput(f"address={address} is not the jobs API's: write http://<head>:8265 (the dashboard's port)")
    return f"{url.scheme}://{url.netloc}{url.path}".rstrip("/")


def _if_url(address: str | None) -> str | None:
    return address if address and address.startswith(("http://", "https://")) else None


class JobsApi:
    """The API at an address.

    Raises (all methods):
        Unreachable: no answer, or status 5xx.
        NotFound: status 404.
        RuntimeError: the token is missing or wrong, or any other refusal.
    """

    def __init__(self, address: str, token: Token | None) -> None:
        self.address, self._token = address, token
        self._other = f"{address} answers, but not as Ray's jobs API: write address=http://<head>:8265"
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
        if _on_loopback(address):
            handlers.append(urllib.request.ProxyHandler({}))  # a port-forward is not behind the proxy
        self._opener = urllib.request.build_opener(*handlers)

    def check(self) -> str:
        """Ask for Ray's version, and wait for it no longer than 10 s whatever the network does."""
        answers: queue.Queue[Any] = queue.Queue()

        def ask() -> None:
            try:
                answers.put(self._json("GET", "/api/version", seconds=FIRST_ANSWER_SECONDS))
            except Exception as error:  # noqa: BLE001 - raised below, in the caller's thread
                answers.put(error)

        threading.Thread(target=ask, daemon=True).start()  # looking up a name has no time limit of its own
        try:
            answer = answers.get(timeout=FIRST_ANSWER_SECONDS + 1)
        except queue.Empty:
            raise Unreachable(f"{self.address} does not answer: is the head up, and its port 8265 forwarded?") from None
        if isinstance(answer, Exception) and not isinstance(answer, NotFound):
            raise answer
        if not isinstance(answer, dict) or "ray_version" not in answer:
            raise RuntimeError(self._other)
        return str(answer["ray_version"])

    def has_package(self, name: str) -> bool:
        """Whether a package is there; it then stays for some minutes, until a job needs it."""
        try:
            self._ask("GET", f"/api/packages/gcs/{name}")
        except NotFound:
            return False
        return True

    def send_package(self, name: str, content: IO[bytes], size: int) -> None:
        """Send an archive of so many bytes."""
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self._ask("PUT", f"/api/packages/gcs/{name}", content, headers=headers)

    def submit(self, job: str, entrypoint: str, runtime_env: Any, metadata: dict[str, str]) -> None:
        """Submit a job; one that was heard and not answered is submitted.

        Raises:
            Exists: a job of that id is there, with other metadata.
        """
        body = {
            "submission_id": job,
            "entrypoint": entrypoint,
            "runtime_env": runtime_env,
            "metadata": metadata,
        }
        try:
            self._json("POST", "/api/jobs/", body)
        except (Unreachable, Exists):
            if not self._is_there(job, metadata):
                raise

    def details(self, job: str) -> dict[str, Any]:
        """What is known of a job, as Ray's `JobDetails`."""
        return self._json("GET", f"/api/jobs/{quote(job, safe='')}")

    def jobs(self) -> list[dict[str, Any]]:
        """All that were submitted to this cluster, and drivers that nobody submitted."""
        return self._json("GET", "/api/jobs/")

    def logs(self, job: str) -> str:
        """All that a job's driver has said so far."""
        return str(self._json("GET", f"/api/jobs/{quote(job, safe='')}/logs").get("logs") or "")

    def stop(self, job: str) -> bool:
        """Ask a job to stop: SIGTERM now, SIGKILL after the cluster's RAY_JOB_STOP_WAIT_TIME_S; whether it ran."""
        return bool(self._json("POST", f"/api/jobs/{quote(job, safe='')}/stop", {}).get("stopped"))

    def _is_there(self, job: str, metadata: dict[str, str]) -> bool:
        try:
            found: dict[str, str] = self.details(job).get("metadata") or {}
        except (Unreachable, NotFound):
            return False
        return metadata.items() <= found.items()

    def _json(self, method: str, path: str, body: Any = None, *, seconds: float = _SECONDS) -> Any:
        data = None if body is None else json.dumps(body).encode()
        answer = self._ask(method, path, data, headers={"Content-Type": "application/json"}, seconds=seconds)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise RuntimeError(self._other) from error

    def _ask(
        self,
        method: str,
        path: str,
        data: bytes | IO[bytes] | None = None,
        *,
        headers: dict[str, str] | None = None,
        seconds: float = _SECONDS,
    ) -> bytes:
        request = urllib.request.Request(f"{self.address}{path}", data=data, method=method, headers=headers or {})
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token.value}")
        try:
            with self._opener.open(request, timeout=seconds) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error.code, error.read(100_000).decode(errors="replace"), path) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Unreachable(
                f"{self.address} does not answer ({reason}): is the head up, and its port forwarded?"
            ) from None

    def _refusal(self, status: int, text: str, path: str) -> RuntimeError:
        """An answer that is none, in words: the last line of what the server said, which is where Python says it."""
        if status == 401:
            return RuntimeError(f"{self.address} refuses (401): {_NO_TOKEN}")
        if status == 403 and self._token:
            return RuntimeError(
                f"{self.address} refuses the token of {self._token.source} (403): it is not this cluster's"
            )
        if status == 413:
            return RuntimeError(
                f"{self.address} does not take a package of this size (413): leave out more by exclude=[…]"
            )
        if "already exists" in text:
            return Exists("a job of this id is there already: give another id=, or none")
        said = [line.strip() for line in text.splitlines() if any(map(str.isalnum, line))] or ["nothing"]
        kind = NotFound if status == 404 else Unreachable if status >= 500 else RuntimeError
        return kind(f"{self.address} answers {status} to {path}: {said[-1][:300]}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other that was not expected."""

    def redirect_request(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing follows."""


def _on_loopback(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
