"""One Ray node as a process of its own, which `cluster.local` starts for the head and for each node.

    python -m cluster.ray_node '{"head": true, "num_cpus": 0}'

`ray start` listens on every interface whatever address it is given, and with the variable that changes this
(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0) it refuses a second node. So this is Ray's own class `Node`, as `ray start` and
`ray.cluster_utils` use it. Says one line of JSON once the node is in the cluster's table, and lives until its standard
input ends: also where whoever started it was killed.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

from cluster.process_tree import kill_tree, process_tree

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a node says of itself."""

    node_id: str
    address: str  # the cluster's
    dashboard: str | None


class RayNode:
    """A node as who starts it sees it: one process with all of Ray's daemons and workers below it.

    Args:
        log: for what it says beside Ray's own logs.
        environment: of all its processes.
        arguments: see `start_node`.
    """

    def __init__(self, log: Path, environment: Mapping[str, str], arguments: Mapping[str, Any]) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cluster.ray_node", json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        self._said: Said | None = None

    @property
    def pid(self) -> int:
        """The process that everything of this node is below."""
        return self._process.pid

    @property
    def node_id(self) -> str:
        """As Ray names it."""
        return self.wait().node_id

    def wait(self) -> Said:
        """Wait until it is in the cluster's table.

        Raises:
            RuntimeError: it did not come up; the message names its log.
        """
        if self._said is None:
            line = cast(IO[bytes], self._process.stdout).readline()
            if not line:
                raise RuntimeError(f"a Ray node did not come up: see {self._log}")
            self._said = Said(**json.loads(line))
        return self._said

    def kill(self) -> None:
        """End all its processes at once, as if the machine had gone; nothing where that was done before."""
        if self._process.returncode is None:
            kill_tree(self.pid)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                cast(IO[bytes], pipe).close()


def start_node(arguments: dict[str, Any]) -> Said:
    """Start the processes of a head or of a node that joins one: `head`, and arguments of Ray's `RayParams`."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams
    from ray._private.utils import write_ray_address

    head = bool(arguments.pop("head"))
    parameters = RayParams(
        node_ip_address="127.0.0.1",
        dashboard_host="127.0.0.1",
        min_worker_port=0,
        max_worker_port=0,
        no_monitor=True,
        dashboard_agent_listen_port=0,  # any that is free: the default is one port for all nodes and all clusters
        **arguments,
    )
    parameters.update_if_absent(include_log_monitor=False)  # declared as text, read as truth
    node = Node(parameters, head=head, shutdown_at_exit=False)
    assert node.node_id
    if head:  # a job looks here for its cluster, and else takes any that runs on this machine
        write_ray_address(node.gcs_address, parameters.temp_dir)
    return Said(node_id=node.node_id, address=node.gcs_address, dashboard=node.webui_url or None)


def main() -> None:
    """Start, say so, wait, and take everything along."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what outlives its parent stays below this process
    said = json.dumps(asdict(start_node(json.loads(sys.argv[1]))))
    os.write(1, f"{said}\n".encode())
    sys.stdin.read()
    while below := process_tree(os.getpid()).keys() - {os.getpid()}:
        kill_tree(*below)


if __name__ == "__main__":
    main()
