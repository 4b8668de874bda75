"""A submission: what a cluster is asked to run, what its answers become, and what nobody gets to see."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster import following, submit
from cluster.command_line import BadInput
from cluster.jobs_api import FIRST_ANSWER_SECONDS, JobsApi, Token, address_of, find_token
from cluster.package import pack
from cluster.submission import COMMANDS, KEYS, submission_of
from pipelines.config import compose

TOKEN, SECRET = "the-token-of-the-cluster", "s3cr3t-value-of-a-key"
NASTY = [
    "data.train=/data/two words/it's",
    'name="quoted"',
    "model.arguments.channels=[8,8,16,16]",
    "data.weights=[2, 0.5]",
    "init=$(touch /tmp/owned)",
    "register=`id`;echo$IFS&&false|cat>x #no",
    "probe.train=*?{a,b}~!\\n\ttab",
    "seed=\n1",
    "tracking.note=τ→✓",
]


def job_of(*words: str, **environment: str) -> Any:
    return submission_of(["pretrain", "storage=/mnt/runs", *words], environment)


def keys_of_commands(root: Path) -> dict[str, set[str]]:
    """The keys at the top of each command's values, of those commands that are there."""
    there = [name for name in COMMANDS if (root / f"configs/{name}.yaml").exists()]
    assert {"pretrain", "probe"} <= set(there)
    return {name: set(compose(name, [])) for name in there}


def test_every_override_reaches_the_command_as_it_was(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    python.chmod(0o755)
    job = job_of(*NASTY)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(job.entrypoint, shell=True, check=True, capture_output=True, text=True, env=environment)
    assert json.loads(done.stdout) == ["-m", "pipelines.pretrain", "storage=/mnt/runs", *NASTY, "ray.address=auto"]
    assert not Path("/tmp/owned").exists()


def test_a_run_has_a_name_so_that_another_attempt_continues_it() -> None:
    job = job_of()
    assert f"name={job.id}" in job.overrides
    assert re.fullmatch(r"pretrain-\d{8}-\d{6}-[0-9a-f]{4}", job.id)
    assert f"name={job.id}" in job_of("name=null", f"id={job.id}").overrides
    assert [word for word in job_of("name=first").overrides if word.startswith("name=")] == ["name=first"]
    assert [job.attempt(number) for number in (1, 2, 3)] == [job.id, f"{job.id}-2", f"{job.id}-3"]
    assert not [word for word in submission_of(["probe", "run=first"]).overrides if word.startswith("name=")]


def test_the_cluster_is_joined_where_the_command_can_join_one(root: Path) -> None:
    """The table says of each command what its YAML says."""
    assert "ray.address=auto" in job_of().overrides
    assert [word for word in job_of("ray.address=local").overrides if "ray" in word] == ["ray.address=local"]
    for name, keys in keys_of_commands(root).items():
        assert ("ray" in keys) == COMMANDS[name].joins, name
        assert ("name" in keys) == COMMANDS[name].writes_runs, name


def test_no_key_of_a_command_is_taken_for_one_of_the_submission(root: Path) -> None:
    for name, keys in keys_of_commands(root).items():
        assert not keys & KEYS.keys()
        for key in keys:
            submission_of([name, "storage=/mnt/runs", f"{key}=/x"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "unknown command: known are pretrain, tune, probe, preflight"),
        (["pretrian"], "unknown pretrian: did you mean pretrain?"),
        (["pretrain", "adress=http://a"], "unknown key adress: did you mean address?"),
        (["pretrain", "--name", "x"], "cannot read '--name': write key=value"),
        (["pretrain", "retries=many"], "retries=many has the wrong type: expected a whole number"),
        (["pretrain", "wait=no"], "wait=no has the wrong type: expected true or false"),
        (["pretrain", "retries=1", "wait=false", "storage=/r"], "retries= needs wait=true"),
        (["pretrain"], "storage=runs lies in the job's own folder"),
        (["tune", "storage=runs"], "storage=runs lies in the job's own folder"),
        (["pretrain", "storage=/r", "id=a/b"], "id=a/b cannot be a job's"),
        (["pretrain", "storage=/r", "env=[NOT_HERE]"], "NOT_HERE is not in the environment here"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        submission_of(words, {})


def test_a_plan_needs_no_shared_folder() -> None:
    assert "plan=true" in submission_of(["pretrain", "plan=true"], {}).overrides


def test_values_never_show() -> None:
    job = job_of("env=[AWS_SECRET_ACCESS_KEY,PLAIN]", AWS_SECRET_ACCESS_KEY=SECRET, PLAIN="1")
    assert job.environment == {"AWS_SECRET_ACCESS_KEY": SECRET, "PLAIN": "1"}
    assert job.secret_names == ["AWS_SECRET_ACCESS_KEY"]
    assert SECRET not in repr(job) + job.entrypoint
    assert TOKEN not in repr(Token(value=TOKEN, source="here"))
    with pytest.raises(BadInput) as caught:
        job_of(f"env=[KEY={SECRET}]")
    assert SECRET not in str(caught.value)
    with pytest.raises(BadInput, match=r"tracking\.uri= has a password in it") as caught:
        job_of(f"tracking.uri=https://me:{SECRET}@mlflow.example")
    assert SECRET not in str(caught.value)
    with pytest.raises(BadInput, match="user or password") as caught:
        address_of(f"http://me:{SECRET}@head:8265")
    assert SECRET not in str(caught.value)


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
    (tmp_path / ".ray/auth_token").write_text("of home\n")
    (tmp_path / "token").write_text("of a file")
    assert find_token() == Token(value="of home", source=str(tmp_path / ".ray/auth_token"))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert find_token() == Token(value="of a file", source=str(tmp_path / "token"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "itself")
    assert find_token() == Token(value="itself", source="RAY_AUTH_TOKEN")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        find_token()


class Cluster:
    """Answers as Ray's jobs API does, for jobs that end as they are told to, one after the other."""

    def __init__(self, *ends: dict[str, Any] | None) -> None:
        self.ends = list(ends)  # None: a head that forgot the job
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.loses_answers = 0  # of so many submissions
        self.redirects = False
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
        job = self.jobs.get(parts[3]) if len(parts) > 3 else None
        if path == "/api/jobs/":
            return 200, list(self.jobs.values())
        if job is None or job.get("forgotten"):
            return 404, b"Job does not exist"
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
def serving(cluster: Cluster) -> Generator[Cluster]:
    thread = threading.Thread(target=cluster.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield cluster
    finally:
        cluster.server.shutdown()
        cluster.server.server_close()
        thread.join()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file, the token in the environment, and no pauses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr(submit, "_FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(following, "_PAUSE_SECONDS", 0.01)
    (tmp_path / "notes.txt").write_text("hello")
    return tmp_path


SUCCEEDED = {"status": "SUCCEEDED", "driver_exit_code": 0}
RESUMABLE = {"driver_exit_code": 75}
KILLED = {"driver_exit_code": -signal.SIGKILL}
LOST = {"error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "Job supervisor actor died: …"}
NEVER_STARTED = {"error_type": "RUNTIME_ENV_SETUP_FAILURE", "message": "runtime_env setup failed:\nno space left"}


def submitted(cluster: Cluster, *words: str) -> int:
    return submit.main(["pretrain", "storage=/mnt/runs", "id=job", f"address={cluster.address}", *words])


@pytest.mark.parametrize(
    ("end", "status", "again"),
    [
        (SUCCEEDED, 0, False),
        (RESUMABLE, 75, True),
        (KILLED, 137, True),
        (LOST, 1, True),
        (None, 1, True),
        (NEVER_STARTED, 1, False),
        ({"driver_exit_code": 1}, 1, False),
        ({"driver_exit_code": 2}, 2, False),
        ({"status": "STOPPED"}, 75, False),
    ],
)
def test_what_the_same_command_continues_is_submitted_again(
    end: dict[str, Any] | None, status: int, again: bool, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Cluster(end, SUCCEEDED)) as cluster:
        assert submitted(cluster) == status
    with serving(Cluster(end, SUCCEEDED)) as cluster:
        assert submitted(cluster, "retries=2") == (0 if again else status)
        assert list(cluster.jobs) == (["job", "job-2"] if again else ["job"])
        if again:
            assert "log of job-2 ·\n" in capsys.readouterr().out
            first, second = cluster.jobs.values()
            assert first["entrypoint"] == second["entrypoint"]
            assert first["runtime_env"] == second["runtime_env"]
            assert "name=job" in first["entrypoint"]
            assert len([one for one in cluster.asked if one.startswith("PUT")]) == 1  # the cluster has it already


def test_retries_end(here: Path) -> None:
    with serving(Cluster(KILLED, RESUMABLE, KILLED, SUCCEEDED)) as cluster:
        assert submitted(cluster, "retries=2") == 137
        assert list(cluster.jobs) == ["job", "job-2", "job-3"]


def test_a_submission_that_was_heard_and_not_answered_is_not_made_twice(here: Path) -> None:
    with serving(Cluster(SUCCEEDED)) as cluster:
        cluster.loses_answers = 1
        assert submitted(cluster) == 0
        assert list(cluster.jobs) == ["job"]


def test_an_id_is_taken_once(here: Path) -> None:
    with serving(Cluster(SUCCEEDED, SUCCEEDED)) as cluster:
        assert submitted(cluster) == 0
        with pytest.raises(RuntimeError, match="there already: give another id="):
            submitted(cluster)


def test_without_waiting_it_says_where_to_look(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Cluster(KILLED)) as cluster:
        assert submitted(cluster, "wait=false") == 0
        said = capsys.readouterr().out
        assert f"python -m cluster.job logs id=job follow=true address={cluster.address}" in said
        assert f"python -m cluster.job stop id=job address={cluster.address}" in said
        assert "log of job" not in said


def test_secrets_go_to_the_cluster_and_nowhere_else(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with serving(Cluster(KILLED, SUCCEEDED)) as cluster:
        assert submitted(cluster, "env=[AWS_SECRET_ACCESS_KEY]", "retries=1") == 0
        assert cluster.jobs["job"]["runtime_env"]["env_vars"] == {"AWS_SECRET_ACCESS_KEY": SECRET}
        done = subprocess.run(
            [sys.executable, "-m", "cluster.job", "status", "id=job", f"address={cluster.address}"],
            capture_output=True,
            text=True,
            check=True,
        )
    said = "".join(capfd.readouterr()) + done.stdout + done.stderr
    assert "who has the cluster's token can read AWS_SECRET_ACCESS_KEY" in said
    assert "job-2  SUCCEEDED" in done.stdout
    assert SECRET not in said
    assert TOKEN not in said


def test_ctrl_c_leaves_the_job(here: Path) -> None:
    with serving(Cluster({"status": "RUNNING"})) as cluster:
        command = [sys.executable, "-m", "cluster.submit", "pretrain", "storage=/mnt/runs", "id=job", "retries=1"]
        with subprocess.Popen(
            [*command, f"address={cluster.address}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            while "log of job" not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "job job goes on, but nobody submits it again" in said
        assert "Traceback" not in said
        assert not [one for one in cluster.asked if "stop" in one]


def refused(cluster_address: str, token: Token | None) -> str:
    with pytest.raises(RuntimeError) as caught:
        JobsApi(cluster_address, token).check()
    return str(caught.value)


def test_a_missing_and_a_wrong_token_are_one_line_each() -> None:
    with serving(Cluster()) as cluster:
        assert "(401): the cluster wants a token: set RAY_AUTH_TOKEN_PATH" in refused(cluster.address, None)
        assert "the token of here (403)" in refused(cluster.address, Token(value="another", source="here"))
        cluster.redirects = True
        assert "302" in refused(cluster.address, Token(value=TOKEN, source="here"))
        assert not [one for one in cluster.asked if "elsewhere" in one]  # the token is not carried along


@pytest.mark.parametrize("kind", ["refuses", "swallows"])
def test_an_address_that_does_not_answer_is_said_within_ten_seconds(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.jobs_api.FIRST_ANSWER_SECONDS", 0.5)
    assert FIRST_ANSWER_SECONDS + 1 < 10
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if kind == "refuses":
            server.close()
        begun = time.monotonic()
        assert f"{address} does not answer" in refused(address, None)
        assert time.monotonic() - begun < 3


def files_in(folder: Path, *exclude: str) -> set[str]:
    from cluster.package import files_of

    return set(files_of(folder, exclude))


def test_a_package_respects_what_is_ignored(tmp_path: Path) -> None:
    for path in (
        *("train.py", "data/raw.bin", "data/keep.csv", "notes/a.log", "notes/deep/b.log", "notes/deep/keep.log"),
        *(".git/config", "pkg/.git", ".venv/bin/python", "pkg/__pycache__/x.pyc", ".env", "keys/id.pem", "big.bin"),
        *("rehearsal/environment.sh", "rehearsal/auth_token", "build/out", "pkg/build/in.py", "secret ", "#hash"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    (tmp_path / ".gitignore").write_text("*.log\n!keep.log\n/build/\ndata/*\n!data/keep.csv\n\\#hash\n")
    (tmp_path / "notes/deep/.gitignore").write_text("keep.log\n")
    (tmp_path / ".rayignore").write_text("big.bin\n")
    (tmp_path / "link.py").symlink_to("train.py")
    (tmp_path / "linked").symlink_to(tmp_path / "pkg", target_is_directory=True)
    (tmp_path / "dangling").symlink_to("nowhere")
    kept = {".gitignore", ".rayignore", "notes/deep/.gitignore", "train.py", "link.py", "data/keep.csv", "secret "}
    assert files_in(tmp_path) == {*kept, "pkg/build/in.py"}
    assert files_in(tmp_path, "pkg/", "secret*") == kept - {"secret "}


PATTERNS = [
    "*.log",
    "!keep.log",
    "/build",
    "doc/**/x",
    "**/deep/",
    "a/**",
    "a?c",
    "[ab].t",
    "[!a].u",
    "sp\\ ",
    "x y ",
    "d/",
]
PATHS = [
    *(
        "a.log",
        "keep.log",
        "d/keep.log",
        "build",
        "d/build",
        "doc/x",
        "doc/p/x",
        "doc/p/q/x",
        "x",
        "deep/f",
        "d/deep/f",
    ),
    *("a/f", "a/b/c", "abc", "ac", "a/c", "a.t", "c.t", "a.u", "b.u", "sp ", "x y", "d", "e/d/f", "e/build/g"),
]


def test_the_rules_are_those_of_git(tmp_path: Path) -> None:
    """Each pattern alone, and all at once, against every path."""
    for lines in (*([one] for one in PATTERNS), PATTERNS, PATTERNS[::-1]):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for path in PATHS:
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.is_dir():
                place.write_text("")
        (folder / ".gitignore").write_text("\n".join(lines) + "\n")
        git = ["git", "-C", str(folder), "-c", "core.excludesFile=/dev/null"]
        subprocess.run([*git, "init", "-q"], check=True)
        listed = subprocess.run(
            [*git, "ls-files", "-oz", "--exclude-standard"], check=True, capture_output=True, text=True
        )
        assert files_in(folder) == {name for name in listed.stdout.split("\0") if name}, lines


def test_the_same_files_are_the_same_package(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "run.sh").chmod(0o755)
    first = pack(tmp_path)
    os.utime(tmp_path / "run.sh", (0, 1_000_000_000))
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/a.pyc").write_text("x")
    again = pack(tmp_path)
    assert (again.name, again.size) == (first.name, first.size)
    (tmp_path / "run.sh").chmod(0o644)
    assert pack(tmp_path).name != first.name
    assert first.uri == f"gcs://{first.name}"


def test_what_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/a.bin").write_bytes(os.urandom(3 * 2**20))
    (tmp_path / "train.py").write_text("x")
    with pytest.raises(BadInput, match=r"more than the 1 MiB .* largest are weights \(3\.0 MiB\), train\.py"):
        pack(tmp_path, limit_bytes=2**20)
    assert pack(tmp_path, ["weights/"], limit_bytes=2**20).files == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BadInput, match="would send all of it"):
        pack(tmp_path)
    with pytest.raises(BadInput, match="is not a folder"):
        pack(tmp_path / "none")


def test_help_costs_nothing() -> None:
    for command in ("submit", "job", "local"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", f"cluster.{command}", "--help"], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0
        assert f"cluster.{command}" in done.stdout
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0  # of the CPU, in seconds
        heavy = (
            f"import sys, cluster.{command}; print({{'ray', 'torch', 'hydra', 'mlflow', 'boto3'}} & sys.modules.keys())"
        )
        assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout == "set()\n"
