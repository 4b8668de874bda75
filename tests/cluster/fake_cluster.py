"""Ray's jobs API without Ray: jobs end as they are told to, one after the other."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "the-token-of-the-cluster"


class FakeCluster:
    """What the API knows, and what it was asked."""

    def __init__(self, *ends: dict[str, Any] | None) -> None:
        self.ends = list(ends)  # None: a head that forgot the job
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.loses_answers = 0  # of so many submissions
        self.redirects = False
        self.on_stop: dict[str, Any] = {}  # what a job that is asked to stop becomes
        self.loses_logs = 0  # of so many questions for one
        self.away = False  # once there is a job
        self.proxy_has_no_server = 0  # for so many questions after a submission
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server, self.address = server, f"http://127.0.0.1:{server.server_address[1]}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                status, answer = cluster.answer(self.command, self.path, body, self.headers.get("Authorization"))
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if token != f"Bearer {TOKEN}":
            return (403, b"Forbidden: Invalid") if token else (401, b"Unauthorized: Missing authentication token")
        if self.redirects:
            return 302, b""
        *_, place = path.rstrip("/").split("/")
        if path == "/api/version":
            return 200, {"ray_version": "2.60.0"}
        if "/packages/" in path:
            if method == "PUT":
                self.packages[place] = body
            return (200, b"") if place in self.packages else (404, b"Package does not exist")
        if method == "POST" and path == "/api/jobs/":
            return self._submit(json.loads(body))
        parts = path.split("/")
        if self.jobs and self.away:
            return 502, b"Bad Gateway"
        if path.endswith("/logs") and self.loses_logs:
            self.loses_logs -= 1
            return 500, b"No answer in time"
        if self.jobs and self.proxy_has_no_server:
            self.proxy_has_no_server -= 1
            return 404, b"no such route"
        job = self.jobs.get(parts[3]) if len(parts) > 3 else None
        if path == "/api/jobs/":
            return 200, list(self.jobs.values())
        if job is None or job.get("forgotten"):
            return 404, b"Job does not exist"
        if path.endswith("/stop"):
            job.update(self.on_stop)
            return 200, {"stopped": True}
        return 200, {"logs": f"log of {job['submission_id']} ·\n"} if path.endswith("/logs") else job

    def _submit(self, asked: dict[str, Any]) -> tuple[int, Any]:
        if asked["submission_id"] in self.jobs:
            return 500, b"Traceback\nValueError: Job with submission_id x already exists.\n."
        end = self.ends.pop(0)
        self.jobs[asked["submission_id"]] = {**asked, "status": "FAILED", **(end or {"forgotten": True})}
        if self.loses_answers:
            self.loses_answers -= 1
            return 500, b"No answer in time"
        return 200, {"submission_id": asked["submission_id"]}


@contextmanager
def serving(cluster: FakeCluster) -> Generator[FakeCluster]:
    thread = threading.Thread(target=cluster.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield cluster
    finally:
        cluster.server.shutdown()
        cluster.server.server_close()
        thread.join()
