"""A cluster to rehearse on: head and nodes as real processes, an object store and an MLflow server, all on loopback.

  python -m cluster.local                                  until Ctrl-C, SIGTERM or SIGHUP, which end all of it
  python -m cluster.local nodes=2 cpus_per_node=2 folder=/tmp/rehearsal

Keys and defaults:

  folder=rehearsal       files of the servers, logs, and environment.sh: `source` it where you start drivers
  nodes=3                nodes beside the head; the head itself runs drivers and jobs, no workers
  cpus_per_node=1        logical CPUs of each
  object_store=true      SeaweedFS with a bucket s3://rehearsal
  mlflow=true            MLflow with a database; artifacts go through it to the object store, or to the folder
  dashboard=true         Ray's dashboard with the jobs API

A node is a process tree that Ray knows by a node id: all share one address, one kernel and one disk. What a lost
machine, a preemption notice or a server that is away does to a run can be tried here; a parted network cannot. Ray's
token authentication is on. Needs Linux.
"""

import os
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, NoReturn

from cluster.command_line import EXIT_OK, Keys, count, parsed, run_command, say, truth
from cluster.mlflow_server import MlflowServer, mlflow_server
from cluster.object_store import ObjectStore, free_ports
from cluster.object_store import object_store as seaweedfs
from cluster.ray_node import RayNode

BUCKET = "rehearsal"
JOB_STOP_SECONDS = 60  # a job that was asked to stop saves its last step first
_OBJECT_STORE_BYTES = 100 * 2**20  # of Ray's own, a node; training hardly uses it
_RAY_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps every socket on 127.0.0.1 (Ray resolves it otherwise)
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
NODE_ENVIRONMENT = {  # as in kuberay/, tests/cluster/test_kuberay.py compares
    "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_SECONDS),
    "RAY_worker_niceness": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",  # peers of a worker that failed wait for it
}
_RAY = "import sys; from ray.scripts.scripts import main; sys.exit(main())"  # the command `ray` of this Python
_NOT_INHERITED = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN")


class LocalCluster:
    """A running cluster, made by `local_cluster`; `nodes` are those that are there, without the head."""

    def __init__(
        self,
        folder: Path,
        ray_files: Path,
        *,
        cpus_per_node: int,
        store: ObjectStore | None,
        mlflow: MlflowServer | None,
    ) -> None:
        token = folder / "auth_token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32), encoding="utf-8")
        self.store, self.mlflow = store, mlflow
        self.nodes: list[RayNode] = []
        self.environment = {  # what a driver needs
            **_RAY_ENVIRONMENT,
            "RAY_AUTH_TOKEN_PATH": str(token),
            **(store.environment if store else {}),
            **(mlflow.environment if mlflow else {}),
        }
        self._folder, self._ray_files, self._cpus_per_node = folder, ray_files, cpus_per_node
        self._started: list[RayNode] = []  # the head first

    def start(self, nodes: int, *, dashboard: bool) -> None:
        """Start the head, then all nodes side by side."""
        port = free_ports(1)[0] if dashboard else None
        self._start_node("head", head=True, num_cpus=0, include_dashboard=dashboard, dashboard_port=port)
        self.environment["RAY_ADDRESS"] = self.address
        if self.dashboard:
            self.environment["RAY_API_SERVER_ADDRESS"] = self.dashboard
        self.nodes += [self._start_next_node() for _ in range(nodes)]
        for node in self.nodes:
            node.wait()

    @property
    def head(self) -> RayNode:
        """The node of the cluster's table, and of the drivers."""
        return self._started[0]

    @property
    def address(self) -> str:
        """For `ray.init`."""
        return self.head.wait().address

    @property
    def dashboard(self) -> str | None:
        """Its URL, and that of the jobs API."""
        said = self.head.wait().dashboard
        return f"http://{said}" if said else None

    @property
    def pids(self) -> list[int]:
        """The roots of all process trees."""
        servers = [one.server.pid for one in (self.store, self.mlflow) if one]
        return [self.head.pid, *(node.pid for node in self.nodes), *servers]

    def add_node(self) -> RayNode:
        """One more node, once it is in the cluster's table."""
        node = self._start_next_node()
        node.wait()
        self.nodes.append(node)
        return node

    def kill_node(self, index: int) -> RayNode:
        """SIGKILL everything on a node at once, as if the machine had gone; the later ones move up."""
        node = self.nodes.pop(index)
        node.kill()
        return node

    def drain_node(self, index: int, *, seconds: int = 30) -> None:
        """Tell the cluster that a node goes away in so many seconds, as a cloud's notice does; nobody kills it."""
        words = ["drain-node", f"--address={self.address}", f"--node-id={self.nodes[index].node_id}"]
        words += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=rehearsal"]
        words += [f"--deadline-remaining-seconds={seconds}"]
        environment = {**os.environ, **self.environment}
        subprocess.run([sys.executable, "-c", _RAY, *words], env=environment, check=True, capture_output=True)

    def close(self) -> None:
        """End all nodes; the head goes last."""
        for node in reversed(self._started):
            node.kill()

    def _start_next_node(self) -> RayNode:
        name = f"node-{len(self._started)}"
        return self._start_node(name, head=False, num_cpus=self._cpus_per_node, gcs_address=self.address)

    def _start_node(self, name: str, **arguments: Any) -> RayNode:
        # Ray looks for free names, and two nodes that look at once find the same
        sockets = {
            f"{kind}_socket_name": str(self._ray_files / f"{name}.{kind}") for kind in ("raylet", "plasma_store")
        }
        # where a job's files are unpacked: a node that does so replaces what is there, under the jobs of another node
        files = f"runtime_resources_{name}"
        arguments |= {"object_store_memory": _OBJECT_STORE_BYTES, "temp_dir": str(self._ray_files), **sockets}
        arguments["runtime_env_dir_name"] = files
        inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        environment = {**inherited, **NODE_ENVIRONMENT, **self.environment}
        # a job says `python`, which is this one, as in an image
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
        node = RayNode(self._folder / f"{name}.log", environment, arguments)
        self._started.append(node)
        return node


@contextmanager
def local_cluster(
    folder: Path,
    *,
    nodes: int = 3,
    cpus_per_node: int = 1,
    object_store: bool = True,
    mlflow: bool = True,
    dashboard: bool = True,
) -> Generator[LocalCluster]:
    """Start a cluster, and end all its processes at the end.

    Args:
        folder: for the servers' files and all logs; the next cluster there finds the same buckets and runs.
        nodes: beside the head, which has no CPUs for workers.
        cpus_per_node: logical CPUs of each of them.
        object_store: whether there is one, with the bucket `BUCKET`.
        mlflow: whether there is a server.
        dashboard: whether there is one, with the jobs API.

    Raises:
        RuntimeError: something did not come up; the message names its log.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")  # keys and databases: no commit, no job's package
    with ExitStack() as stack:
        store = server = None
        if object_store:
            store = stack.enter_context(seaweedfs(folder / "object_store"))
            store.make_bucket(BUCKET)
        if mlflow:
            artifacts = f"s3://{BUCKET}/mlflow" if store else None
            keys = store.environment if store else None
            server = stack.enter_context(mlflow_server(folder / "mlflow", artifacts=artifacts, environment=keys))
        # sockets have short paths, or none
        ray_files = stack.enter_context(TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True))
        cluster = LocalCluster(folder, Path(ray_files), cpus_per_node=cpus_per_node, store=store, mlflow=server)
        stack.callback(cluster.close)
        cluster.start(nodes, dashboard=dashboard)
        yield cluster


def main(words: list[str]) -> int:
    """Start what the words say, print where it is, and wait for a signal; the exit status."""
    values = parsed(words, _KEYS)
    folder: Path = values.pop("folder", Path("rehearsal"))
    try:
        _end_on_signals()
        with local_cluster(folder, **values) as cluster:
            say(where_it_is(folder, cluster))
            signal.pause()
    except _Asked:
        pass
    return EXIT_OK


class _Asked(BaseException):
    """A signal came."""


def _end_on_signals() -> None:
    """From now on the first of these signals raises `_Asked`; later ones are not heard, so that all is taken down."""
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: the terminal was closed

    def handler(number: int, frame: FrameType | None) -> NoReturn:
        for name in ends:
            signal.signal(name, signal.SIG_IGN)
        raise _Asked

    for name in ends:
        signal.signal(name, handler)


_KEYS: Keys = {
    "folder": Path,
    "nodes": count,
    "cpus_per_node": count,
    "object_store": truth,
    "mlflow": truth,
    "dashboard": truth,
}


def where_it_is(folder: Path, cluster: LocalCluster) -> str:
    """Addresses, and the file with the exports, which have secrets in them."""
    exports = (folder / "environment.sh").resolve()
    exports.touch(mode=0o600)
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in sorted(cluster.environment.items())]
    exports.write_text("".join(lines), encoding="utf-8")
    places = {
        "Ray": f"{cluster.address}, the head and {len(cluster.nodes)} node(s)",
        "dashboard and jobs": cluster.dashboard,
        "MLflow": cluster.mlflow and cluster.mlflow.uri,
        "S3": cluster.store and f"{cluster.store.endpoint}, bucket s3://{BUCKET}",
    }
    shown = "\n".join(f"{name + ':':20}{place}" for name, place in places.items() if place)
    said = [shown, "In the shell of a driver (addresses, token and keys):", f"  source {exports}"]
    if cluster.dashboard:
        submit = f"python -m cluster.submit pretrain … storage=<folder> address={cluster.dashboard}"
        said += ["In the same shell, from any folder, as a job:", f"  {submit}"]
    return "\n\n".join([*said, "Ctrl-C ends it."])


if __name__ == "__main__":
    run_command("local", __doc__, main)
