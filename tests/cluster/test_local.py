"""The rehearsal cluster: on loopback alone, its table follows what happens to nodes, nothing is left when it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Sequence
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from cluster.local import BUCKET, LocalCluster, local_cluster, where_it_is
from cluster.package import files_of
from cluster.process_tree import kill_tree, process_tree

_LISTENING = "0A"
_DRIVER = """
import ray, sys
ray.init(log_to_driver=False)
actor = ray.remote(num_cpus=1)(type("Here", (), {"ask": lambda self: 1})).remote()
assert ray.get(actor.ask.remote()) == 1
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[LocalCluster]:
    with local_cluster(tmp_path_factory.mktemp("cluster"), nodes=2) as running:
        yield running
        family = process_tree(*running.pids)
        assert len(family) > 10
    assert process_tree(*family) == {}


def listening(pids: Sequence[int]) -> set[tuple[str, int]]:
    """Address and port of every TCP socket on which one of these processes listens."""
    inodes: set[str] = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(entry)
            except OSError:
                continue  # closed since
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found: set[tuple[str, int]] = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            address, port = words[1].split(":")
            if words[3] == _LISTENING and words[9] in inodes:
                found.add((_in_words(address), int(port, 16)))
    return found


def _in_words(address: str) -> str:
    """The kernel writes an address in 32-bit words of the machine's byte order."""
    raw = b"".join(bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def on_loopback(text: str) -> bool:
    """Also where an IPv6 socket is bound to an IPv4 address."""
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def alive(cluster: LocalCluster) -> set[str]:
    """Ids of the nodes that Ray's table says are there."""
    answer = ask(f"{cluster.dashboard}/api/v0/nodes?detail=1", token=token_of(cluster))
    return {node["node_id"] for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"}


def token_of(cluster: LocalCluster) -> str:
    return Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8")


def eventually(question: Callable[[], bool], *, seconds: float = 60.0) -> bool:
    """Whether it becomes true."""
    end = time.monotonic() + seconds
    while not question():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def ask(url: str, body: Any = None, *, method: str | None = None, token: str | None = None) -> Any:
    """What an HTTP API answers."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method)
    request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


@pytest.mark.ray
@pytest.mark.s3
def test_every_socket_is_on_loopback(cluster: LocalCluster) -> None:
    command = [sys.executable, "-c", _DRIVER]
    environment = {**os.environ, **cluster.environment}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout
        assert driver.stdout.readline() == "ready\n"
        found = listening(list(process_tree(*cluster.pids, driver.pid)))
        assert listening([driver.pid])
    assert len(found) > 20
    assert [place for place in found if not on_loopback(place[0])] == []
    assert all(listening(list(process_tree(pid))) for pid in cluster.pids)  # it looked into each tree


@pytest.mark.ray
def test_a_socket_on_all_interfaces_would_be_seen() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert ("0.0.0.0", server.getsockname()[1]) in listening([os.getpid()])
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert ("::1", server.getsockname()[1]) in listening([os.getpid()])


@pytest.mark.ray
@pytest.mark.s3
def test_the_table_follows_nodes_that_die_join_and_drain(cluster: LocalCluster) -> None:
    ids = {node.node_id for node in (cluster.head, *cluster.nodes)}
    assert len(ids) == 3
    assert eventually(lambda: alive(cluster) == ids)

    tree = process_tree(cluster.nodes[0].pid)
    assert any("raylet" in command for command in tree.values())
    lost = cluster.kill_node(0)
    assert process_tree(*tree) == {}
    assert eventually(lambda: alive(cluster) == ids - {lost.node_id})

    added = cluster.add_node()
    assert eventually(lambda: alive(cluster) == ids - {lost.node_id} | {added.node_id})

    cluster.drain_node(0, seconds=20)  # it does nothing, so it may leave at once
    assert eventually(lambda: cluster.nodes[0].node_id not in alive(cluster))
    assert added.node_id in alive(cluster)


@pytest.mark.ray
@pytest.mark.s3
def test_a_job_that_is_stopped_has_time_to_save(cluster: LocalCluster) -> None:
    jobs = f"{cluster.dashboard}/api/jobs/"
    token = token_of(cluster)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(jobs)
    saving = (
        "trap 'sleep 5; echo saved; exit 0' TERM; echo at $RAY_ADDRESS; echo started; while true; do sleep 0.1; done"
    )
    job = ask(jobs, {"entrypoint": saving}, token=token)["submission_id"]

    def said() -> list[str]:  # the log begins with the command itself
        return ask(f"{jobs}{job}/logs", token=token)["logs"].splitlines()

    assert eventually(lambda: "started" in said())
    assert f"at {cluster.address}" in said()  # also where other clusters run on this machine
    ask(f"{jobs}{job}/stop", {}, token=token)
    assert eventually(lambda: ask(f"{jobs}{job}", token=token)["status"] == "STOPPED")
    assert "saved" in said()


@pytest.mark.ray
@pytest.mark.s3
def test_it_says_where_it_is_and_keeps_keys_in_a_file(cluster: LocalCluster, tmp_path: Path) -> None:
    assert cluster.store
    assert cluster.mlflow
    said = where_it_is(tmp_path, cluster)
    for address in (cluster.address, cluster.dashboard, cluster.mlflow.uri, cluster.store.endpoint):
        assert address
        assert address in said
    assert f"python -m cluster.submit pretrain … storage=<folder> address={cluster.dashboard}" in said
    assert f"source {tmp_path}/environment.sh" in said
    assert (tmp_path / "environment.sh").stat().st_mode & 0o777 == 0o600
    folder = Path(cluster.environment["RAY_AUTH_TOKEN_PATH"]).parent
    assert [path for path in files_of(folder.parent) if path.startswith(f"{folder.name}/")] == []  # of no job's package
    keys = [token_of(cluster), cluster.store.secret_key]
    exports = (tmp_path / "environment.sh").read_text(encoding="utf-8")
    assert [key for key in keys if key in said] == []
    assert f"export AWS_SECRET_ACCESS_KEY={cluster.store.secret_key}\n" in exports


@pytest.mark.ray
@pytest.mark.s3
def test_servers_come_back_with_what_they_had(cluster: LocalCluster) -> None:
    assert cluster.mlflow
    assert cluster.store
    api = f"{cluster.mlflow.uri}/api/2.0"
    experiment = ask(f"{api}/mlflow/experiments/create", {"name": "kept"})["experiment_id"]
    ask(f"{api}/mlflow-artifacts/artifacts/note.txt", b"through the server", method="PUT")
    client = boto3.client("s3", **cluster.store.client_arguments)

    def stored() -> bytes:
        return client.get_object(Bucket=BUCKET, Key="mlflow/note.txt")["Body"].read()

    assert stored() == b"through the server"

    cluster.mlflow.server.stop()
    cluster.store.server.kill()
    with pytest.raises(urllib.error.URLError):
        ask(f"{api}/mlflow/experiments/get?experiment_id={experiment}")
    with pytest.raises(BotoCoreError):
        stored()
    cluster.store.server.start()
    cluster.mlflow.server.start()
    assert ask(f"{api}/mlflow/experiments/get?experiment_id={experiment}")["experiment"]["name"] == "kept"

    def answers() -> bool:
        try:
            return stored() == b"through the server"
        except (BotoCoreError, ClientError):
            return False

    assert eventually(answers)


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_the_command_takes_everything_along(tmp_path: Path, number: signal.Signals) -> None:
    words = [f"folder={tmp_path}", "nodes=1", "mlflow=false", "dashboard=false"]
    with subprocess.Popen(
        [sys.executable, "-m", "cluster.local", *words], stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout
        said = ""
        while "Ctrl-C" not in said:
            line = command.stdout.readline()
            assert line, said
            said += line
        tree = process_tree(command.pid)
        try:
            assert sum("raylet/raylet" in line for line in tree.values()) == 2
            assert any("weed server" in line for line in tree.values())
            token = (tmp_path / "auth_token").read_text(encoding="utf-8")
            assert token not in said
            assert "RAY_AUTH_TOKEN_PATH" in (tmp_path / "environment.sh").read_text(encoding="utf-8")
            command.send_signal(number)
            assert command.wait(30) == (-number if number == signal.SIGKILL else 0)
            assert eventually(lambda: process_tree(*tree) == {}, seconds=20)
        finally:
            kill_tree(*tree)
