"""A proxy before an S3 endpoint that does what networks do: resets, errors, slow, short and damaged bodies.

Which request fails, and how, follows from its path, its range and how often it was asked for; after `_TRIES` failures
in a row it is left alone, so that whoever tries again gets through. What is said to fail was done all the same: the
answer is lost. Apart from that, `Faults.full` and `Faults.forbidden` refuse what would write, as a full disk or a key
that lost its rights does, until they are switched off; then nothing was done.
"""

import hashlib
import http.client
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

FAULTS = ("reset", "500", "503", "short", "flipped", "slow", "none", "none")
_TRIES = 3


class Faults:
    """What was done so far."""

    def __init__(self, endpoint: str) -> None:
        self.host, self.port = endpoint.removeprefix("http://").split(":")
        self.url = ""
        self.missing = ""  # a path that has no object behind it
        self.full = False  # 507 for what writes
        self.forbidden = False  # 403 for what writes
        self.refused: Counter[int] = Counter()  # by status
        self.touched = ".tar"  # what a path has in it whose requests fail
        self.counts: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._lock = Lock()

    def choose(self, request: str) -> str:
        """The fault of this request."""
        with self._lock:
            number = self._asked[request]
            self._asked[request] += 1
            draw = hashlib.sha256(f"{request} {number}".encode()).digest()[0]
            fault = FAULTS[draw % len(FAULTS)] if number < _TRIES else "none"
            self.counts[fault] += 1
        return fault

    def refuses(self, command: str, path: str) -> tuple[int, str] | None:
        """Status and code for a request that writes; deleting is not writing, though S3 posts lists of what goes."""
        if command not in ("PUT", "POST") or path.endswith(("?delete", "?delete=")):
            return None
        refusal = (507, "InsufficientStorage") if self.full else (403, "AccessDenied") if self.forbidden else None
        if refusal:
            with self._lock:
                self.refused[refusal[0]] += 1
        return refusal

    @property
    def total(self) -> int:
        return sum(count for name, count in self.counts.items() if name != "none")


@contextmanager
def faulty_proxy(endpoint: str) -> Generator[Faults]:
    """Forward to an endpoint, badly; `Faults.url` is where to ask."""
    faults = Faults(endpoint)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._forward()

        def do_HEAD(self) -> None:
            self._forward()

        def do_PUT(self) -> None:
            self._forward()

        def do_POST(self) -> None:
            self._forward()

        def do_DELETE(self) -> None:
            self._forward()

        def _forward(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if refusal := faults.refuses(self.command, self.path):
                status, code = refusal
                self._say(status, {}, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
                return
            upstream = http.client.HTTPConnection(faults.host, int(faults.port), timeout=30)
            upstream.request(self.command, self.path, body=sent or None, headers=dict(self.headers))
            answer = upstream.getresponse()
            body = answer.read()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")}
            upstream.close()
            request = f"{self.path} {self.headers.get('Range')}"
            fault = faults.choose(request) if faults.touched in self.path else "none"
            if self.command != "GET" and fault in ("short", "flipped"):
                fault = "reset"
            if faults.missing and self.path.startswith(faults.missing):
                self._say(404, {}, b"<Error><Code>NoSuchKey</Code><Message>gone</Message></Error>")
            elif fault in ("500", "503"):
                code = "SlowDown" if fault == "503" else "InternalError"
                self._say(int(fault), {}, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
            elif fault == "reset":
                self.connection.close()
                self.close_connection = True
            elif fault == "short":
                self._say(answer.status, headers, body, sent=len(body) // 2)
                self.close_connection = True
            else:
                if fault == "flipped" and body:
                    body = body[:-1] + bytes([body[-1] ^ 1])
                    headers = {k: v for k, v in headers.items() if "checksum" not in k.lower()}
                if fault == "slow":
                    time.sleep(0.05)
                self._say(answer.status, headers, body)

        def _say(self, status: int, headers: dict[str, str], body: bytes, *, sent: int | None = None) -> None:
            self.send_response(status)
            size = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            for name, value in {**headers, "Content-Length": size}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:sent])

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    faults.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield faults
    finally:
        server.shutdown()
        server.server_close()
