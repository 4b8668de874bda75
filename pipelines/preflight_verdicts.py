"""What the facts of the nodes mean for the run: each says it in one line, or raises UserError with what to do."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

from pipelines.all_reduce import Summing
from pipelines.cluster_room import Resource
from pipelines.console import duration
from pipelines.node_facts import Fetched, Space
from pipelines.scouts import Answer, Node, Offset
from ssl_core.errors import UserError

Found = Sequence[tuple[Node, Mapping[str, Answer]]]
"""Nodes that answered, with what they said."""

_MOST_SECONDS_OFF = 1.0  # clocks that are kept are right to some milliseconds
_NOBODY = "no node answered"
_NAMED = 3  # nodes that a message names
_SHARED_MEMORY_BYTES = 1 << 30  # for NCCL between GPUs of one node; containers have 64 MB unless told


def nodes_answer(found: Found, silent: Mapping[Node, str]) -> str:
    """All nodes do."""
    remedy = "is this version of ssl-pipelines installed there, and is the node well?"
    _refuse_any([f"{node} does not answer: {why}" for node, why in silent.items()], remedy)
    return f"{_count(found)} on which workers may be placed answer(s)"


def same_versions(found: Found, here: Mapping[str, str]) -> str:
    """The same everywhere as on this machine."""
    wrong: list[str] = []
    for node, versions in values(found, "versions"):
        differ = [
            f"{name} {versions.get(name)}, not {mine}" for name, mine in here.items() if versions.get(name) != mine
        ]
        if differ:
            wrong.append(f"{node} has {' and '.join(differ)}")
    _refuse_any(wrong, "use one image or one environment for the driver and all nodes")
    return ", ".join(f"{name} {mine}" for name, mine in here.items())


def clocks_agree(offsets: Sequence[tuple[Node, Offset]]) -> str:
    """Every clock is this machine's, as exactly as the round trip to it can tell."""
    if not offsets:
        raise UserError(_NOBODY)
    wrong = [
        f"the clock of {node} is {offset.seconds:+.1f} s off (± {offset.bound:.3f} s)"
        for node, offset in offsets
        if abs(offset.seconds) - offset.bound > _MOST_SECONDS_OFF
    ]
    _refuse_any(
        wrong, "let NTP or chrony set it: stores refuse requests of another time, and times in metrics are wrong"
    )
    off = max(abs(offset.seconds) for _, offset in offsets)
    bound = max(offset.bound for _, offset in offsets)
    return f"within {1000 * off:.1f} ms of this machine's (known to ± {1000 * bound:.1f} ms)"


def storage_is_shared(found: Found) -> str:
    """Every node has read what this machine wrote."""
    values(found, "storage")
    return f"what this machine writes is read on {_count(found)}"


def tracking_is_reached(found: Found) -> str:
    """Every node reaches the server: the next driver may be on any of them."""
    values(found, "tracking")
    return f"answers on {_count(found)}"


def data_is_read(found: Found) -> str:
    """A shard of each data set was read on every node, with the right checksum."""
    fetched = [cast(Fetched, value) for _, value in values(found, "data")]
    slowest = min(one.num_bytes / max(one.seconds, 1e-9) for one in fetched)
    return f"a shard of each data set has its checksum on {_count(found)}, {slowest / 1e6:,.0f} MB/s on the slowest"


def store_works(found: Found) -> str:
    """Every node writes, reads and removes where checkpoints go."""
    seconds = [float(took) for _, took in values(found, "checkpoints")]
    return f"write, read, conditional put, list and delete on {_count(found)}, in {max(seconds):.2f} s at most"


def disk_suffices(found: Found, need: Resource) -> str:
    """Every file system that the run fills has room for it; on nodes without room for a worker it fills none."""
    holders = [(node, said) for node, said in found if node.resources.get(need, 0) >= 1]
    if found and not holders:
        raise UserError(f"no node has a {need}, which a worker needs")
    wrong: list[str] = []
    for node, spaces in values(holders, "disk"):
        for space in cast(list[Space], spaces):
            if space.free_bytes < space.needed_bytes:
                needed, free = (f"{count / 1e9:,.3g} GB" for count in (space.needed_bytes, space.free_bytes))
                wrong.append(f"{node}: {' and '.join(space.what)} in {space.folder} may take {needed}, {free} are free")
    _refuse_any(wrong, "free some, lower data.cache_gb or train.keep_checkpoints, or name another folder")
    spaces = [space for _, those in values(holders, "disk") for space in cast(list[Space], those)]
    least = min(spaces, key=lambda space: space.free_bytes - space.needed_bytes)
    needed, free = least.needed_bytes / 1e9, least.free_bytes / 1e9
    return f"{' and '.join(least.what)} may take {needed:,.3g} GB, at least {free:,.3g} GB are free ({least.folder})"


def shared_memory_suffices(found: Found, need: Resource) -> str:
    """What GPUs of one node exchange data through is large enough."""
    wrong: list[str] = []
    sizes: list[int] = []
    for node, space in values(found, "shared memory"):
        if space is None:
            continue
        sizes.append(space.free_bytes)
        if need == "GPU" and node.resources.get("GPU", 0) > 1 and space.free_bytes < _SHARED_MEMORY_BYTES:
            wrong.append(f"{node} has {space.free_bytes / 2**20:,.0f} MiB free in {space.folder} for several GPUs")
    _refuse_any(wrong, "give the container more (--shm-size=1g, or an emptyDir with medium: Memory)")
    return f"at least {min(sizes) / 2**30:,.1f} GiB free in /dev/shm" if sizes else "this system has no /dev/shm"


def room_for_workers(
    nodes: Sequence[Node],
    *,
    workers: tuple[int, int],
    free: Callable[[Resource], int],
    device: Literal["cpu", "gpu"] | None = None,
) -> tuple[Resource, int, str]:
    """What a worker gets one of, how many there would be now, and that in words.

    Args:
        nodes: of the cluster.
        workers: the least and the most that `train.workers` asks for.
        free: how many the cluster has room for now.
        device: `train.device`.
    """
    least, most = workers
    gpus = 0 if device == "cpu" else sum(int(node.resources.get("GPU", 0)) for node in nodes)
    need: Resource = "GPU" if gpus or device == "gpu" else "CPU"
    capacity = gpus if need == "GPU" else sum(int(node.resources.get("CPU", 0)) for node in nodes)
    per_node = ", ".join(f"{node.address} {_gpus(node)}" for node in nodes if node.resources.get("GPU", 0))
    if capacity < least:
        otherwise = f" ({per_node}), and the run would train on CPUs" if gpus and device is None else ""
        raise UserError(
            f"the cluster has {capacity} {need}(s) for at least {least} worker(s){otherwise}: add nodes, or lower "
            "train.workers"
        )
    now = free(need)
    if now < least:
        raise UserError(
            f"of {capacity} {need}(s) {now} are free now, for at least {least} worker(s): wait for what else runs there"
        )
    kinds = {name for node in nodes for name in node.resources if name.startswith("accelerator_type:")}
    said = f"{min(now, most)} of {least} to {most}" if least < most else str(most)
    said += f" worker(s), each with a {need} of {capacity} ({now} free)" + (f": {per_node}" if gpus else "")
    if gpus and len(kinds) > 1:
        said += "; warning: GPUs of different kinds, the slowest decides"
    return need, min(now, most), said


def sums_are_right(summing: Summing, gradient_bytes: int | None) -> str:
    """Every worker got the right sum; how fast."""
    if summing.wrong:
        where = ", ".join(f"{rank} ({summing.devices[rank]})" for rank in summing.wrong[:_NAMED])
        raise UserError(
            f"{summing.backend} gave a wrong sum on {len(summing.wrong)} of {summing.workers} workers: {where}: take "
            "that device out, its results cannot be trusted"
        )
    if summing.workers == 1:
        return f"one worker ({summing.devices[0]}): nothing to sum"
    rate = summing.bytes_per_second
    takes = (
        f"; this run's gradient of {gradient_bytes / 1e6:,.1f} MB takes {_short(gradient_bytes / rate)}"
        if gradient_bytes
        else ""
    )
    devices = ", ".join(f"{count} × {device}" for device, count in Counter(summing.devices).items())
    return (
        f"{summing.backend}, {summing.workers} workers ({devices}): right, {rate / 1e9:.2f} GB/s, "
        f"{_short(summing.latency_seconds)} for one number{takes}"
    )


def node_table(found: Found, offsets: Sequence[tuple[Node, Offset]]) -> str:
    """The figures, one row a node."""
    clocks = dict(offsets)
    rows = [["node", "clock", "disk free", "/dev/shm free", "devices", "shard"]]
    for node, said in found:
        offset, disk, memory, data = (
            clocks.get(node),
            _value(said, "disk"),
            _value(said, "shared memory"),
            _value(said, "data"),
        )
        rows.append(
            [
                f"{node.address} ({node.node_id[:8]})",
                f"{1000 * offset.seconds:+.1f} ± {1000 * offset.bound:.1f} ms" if offset else "-",
                ", ".join(f"{space.free_bytes / 1e9:,.1f} GB" for space in disk) if disk else "-",
                f"{memory.free_bytes / 2**30:,.1f} GiB" if memory else "-",
                _gpus(node) if node.resources.get("GPU", 0) else f"{int(node.resources.get('CPU', 0))} CPU(s)",
                f"{data.num_bytes / 1e6 / max(data.seconds, 1e-9):,.0f} MB/s" if data else "-",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def values(found: Found, name: str) -> list[tuple[Node, Any]]:
    """What the nodes answered to a question; raises UserError where some could not, or no node answered at all."""
    if not found:
        raise UserError(_NOBODY)
    _refuse_any([f"{node}: {said[name].error}" for node, said in found if said[name].error is not None])
    return [(node, said[name].value) for node, said in found]


def _value(said: Mapping[str, Answer], name: str) -> Any:
    return said[name].value if name in said else None


def _refuse_any(wrong: Sequence[str], remedy: str | None = None) -> None:
    if wrong:
        more = f" (and {len(wrong) - _NAMED} more)" if len(wrong) > _NAMED else ""
        raise UserError("; ".join(wrong[:_NAMED]) + more + (f": {remedy}" if remedy else ""))


def _gpus(node: Node) -> str:
    kinds = [name.partition(":")[2] for name in node.resources if name.startswith("accelerator_type:")]
    return f"{int(node.resources['GPU'])} × {kinds[0] if kinds else 'GPU'}"


def _count(found: Found) -> str:
    return f"{len(found)} node(s)"


def _short(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else duration(seconds)
