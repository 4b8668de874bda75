"""What the Ray cluster has room for, and which of its nodes are about to go.

`ray._private.state` is the only source of both: Ray Data and Ray Train read it too.
"""

from collections.abc import Mapping
from typing import Any, Literal, cast

Resource = Literal["CPU", "GPU"]
"""What a worker needs one of."""


def workers_need(least: int, device: Literal["cpu", "gpu"] | None = None) -> Resource:
    """What a worker needs one of: as asked for; or GPUs where the cluster has enough for the least number, or CPUs."""
    if device is not None:
        return "GPU" if device == "gpu" else "CPU"
    return "GPU" if capacity("GPU") >= least else "CPU"


def capacity(resource: Resource) -> int:
    """Workers that the cluster would have room for if nothing else ran."""
    import ray

    nodes = cast(list[dict[str, Any]], ray.nodes())
    return _whole({node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}, resource)


def room(resource: Resource) -> int:
    """Workers that the cluster has room for now."""
    from ray._private.state import available_resources_per_node

    return _whole(available_resources_per_node(), resource)


def draining_nodes() -> frozenset[str]:
    """Nodes that will be taken away: preempted, or scaled down."""
    from ray._private.state import state

    return frozenset(cast(Mapping[str, int], state.get_draining_nodes()))


def ask_for_nodes(resource: Resource, workers: int) -> None:
    """Tell an autoscaler, where there is one, for how many workers there shall be room, those that run included.

    There is one wish for the whole cluster, that of whoever said it last: 0 ends it. A wish for more than the cluster
    may ever have brings no node.
    """
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[{resource: 1}] * workers)


def _whole(nodes: Mapping[str, Mapping[str, float]], resource: Resource) -> int:
    """A worker needs a whole one, on one node that stays."""
    leaving = draining_nodes()
    return sum(int(have.get(resource, 0)) for node, have in nodes.items() if node not in leaving)
