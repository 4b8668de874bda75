"""The checks of `preflight`, in their order: what this machine can tell, then what Ray is needed for."""

import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pipelines import preflight_verdicts as verdicts
from pipelines.all_reduce import sum_on_workers
from pipelines.attempts import wait_for_room
from pipelines.cluster_room import Resource, room, workers_need
from pipelines.mlflow_connection import check_reachable, connect, place, plain_errors, sqlite_path, tracking_uri
from pipelines.node_facts import disk_spaces, fetch, shared_memory, try_store, versions
from pipelines.plan import Plan, check_inputs, make_plan, probe_data, worker_bounds
from pipelines.pretrain_config import PretrainConfig
from pipelines.run_folder import checkpoint_folder
from pipelines.scouts import Node, Question, Scouts, nodes_for_workers
from pipelines.shared_storage import SharedPlaces
from pipelines.stop_signals import StopSignals
from ssl_core.errors import Resumable, UserError
from ssl_core.methods.base import as_module
from ssl_core.storage.local import local_path, made_for_now
from ssl_core.storage.s3 import Folder

_INPUTS_SECONDS = 600.0  # the driver may hash some gigabytes
_NODE_SECONDS, _SUM_SECONDS, _KNOCK_SECONDS = 120.0, 180.0, 10.0
_STATES = {"adamw": 2}  # tensors of a parameter's size that an optimiser keeps; others keep one


class Make(Protocol):
    """`pipelines.preflight.Checks.make`."""

    def __call__(self, name: str, check: Callable[[], Any], *, patience_seconds: float | None = ...) -> Any:
        """Make a check; what it gave, or None where it failed."""
        ...


def check_all(values: Mapping[str, Any], config: PretrainConfig, make: Make, say: Callable[[str], None]) -> None:
    """Make every check.

    Args:
        values: the configuration as composed.
        config: the same, typed.
        make: makes one check, says it and keeps it.
        say: shows what is no check.
    """
    inputs = make("inputs", partial(_inputs, values), patience_seconds=_INPUTS_SECONDS)
    plan: Plan | None = inputs and inputs[0]
    bytes_of: Sizes | None = inputs and inputs[1]
    run = local_path(config.storage).resolve() / (config.name or "preflight")
    checkpoints = checkpoint_folder(config.checkpoints, run)
    with ExitStack() as stack:
        folders: list[Folder] = []
        if make("storage", partial(_storage, run, stack)):
            folders.append(run)
        if make("checkpoints", partial(_checkpoints, checkpoints)):
            folders.append(checkpoints)
        tracker = make("tracking", partial(_tracking, config))
        stack.callback(_leave_ray)
        if make("Ray", partial(_ray, config), patience_seconds=None) is None:  # its daemons end with the thread
            say("        without Ray the nodes and the workers cannot be looked at")
            return
        workers = make("workers", partial(_workers, config), patience_seconds=None)  # it has a limit of its own
        need: Resource = workers[0] if workers else "CPU"
        shared = SharedPlaces(folders, tracker and tracker[0])
        table = _check_nodes(nodes_for_workers(), need, _questions(plan, bytes_of, checkpoints), shared, make)
        if workers:
            make("all-reduce", partial(_all_reduce, bytes_of, need, workers[1]), patience_seconds=_SUM_SECONDS + 30)
        say(f"\n{table}")


def _check_nodes(
    nodes: Sequence[Node], need: Resource, questions: Mapping[str, Question], shared: SharedPlaces, make: Make
) -> str:
    """All checks of the nodes, from one visit to each; the table of what was found."""
    scouts = Scouts(nodes)
    try:
        with shared.questions() as asked:
            found = scouts.look({**questions, **asked}, _NODE_SECONDS)
        offsets = scouts.offsets()
    finally:
        scouts.close()
    judges: dict[str, Callable[[], str]] = {
        "answer": partial(verdicts.nodes_answer, found, scouts.silent),
        "versions": lambda: verdicts.same_versions(found, versions()),
        "clocks": partial(verdicts.clocks_agree, offsets),
        "storage": partial(verdicts.storage_is_shared, found),
        "tracking": partial(verdicts.tracking_is_reached, found),
        "checkpoints": partial(verdicts.store_works, found),
        "data": partial(verdicts.data_is_read, found),
        "disk": partial(verdicts.disk_suffices, found, need),
        "shared memory": partial(verdicts.shared_memory_suffices, found, need),
    }
    for name, judge in judges.items():
        if name in ("answer", "clocks", *questions, *asked):
            make(f"nodes: {name}", judge)
    return verdicts.node_table(found, offsets)


def _questions(plan: Plan | None, bytes_of: "Sizes | None", checkpoints: Folder) -> dict[str, Question]:
    """What every node is asked; without a plan, what does not depend on one."""
    asked: dict[str, Question] = {
        "versions": versions,
        "shared memory": shared_memory,
        "checkpoints": partial(try_store, checkpoints),
    }
    if plan is not None and bytes_of is not None:
        sets = [plan.train_data, *(probe_data(plan) or ())]
        parts = {part.digest: part for data in sets for part in data.parts}
        bucket = {shard.sha256: shard.bytes for data in sets for shard in data.bucket_shards}
        asked["data"] = partial(fetch, [replace(part, shards=part.shards[:1]) for part in parts.values()])
        asked["disk"] = partial(
            disk_spaces,
            plan.config.data.shard_cache,
            bucket,
            checkpoints,
            bytes_of.checkpoint,
            plan.config.train.keep_checkpoints + 2,  # the best, and the one that is written
        )
    return asked


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes of a checkpoint, and of the gradient that workers sum in a step."""

    checkpoint: int
    gradient: int

    @classmethod
    def of(cls, plan: Plan) -> "Sizes":
        """From the model itself, with random weights."""
        module = as_module(plan.build_method(plan.random_encoder()))
        gradient = _bytes(one for one in module.parameters() if one.requires_grad)
        states = _STATES.get(plan.config.optim.name, 1)
        return cls(checkpoint=_bytes(module.state_dict().values()) + states * gradient, gradient=gradient)


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(int(tensor.numel() * tensor.element_size()) for tensor in tensors)


def _inputs(values: Mapping[str, Any]) -> tuple[Plan, Sizes, str]:
    plan = make_plan(values)
    check_inputs(plan)
    data = plan.train_data
    return (
        plan,
        Sizes.of(plan),
        (
            f"{data.num_samples:,} images in {len(data.shards):,} shard(s), {plan.total_steps:,} steps of "
            f"{plan.lanes.global_batch}"
        ),
    )


def _storage(run: Path, stack: ExitStack) -> str:
    """The run's folder exists until the end, so that nodes find it."""
    stack.enter_context(made_for_now(run))
    _write_into(run)
    return f"{run} can be written to"


def _write_into(folder: Path) -> None:
    """Raises OSError where that is not possible."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"preflight")


def _checkpoints(folder: Folder) -> str:
    return f"{folder}: write, read, conditional put, list and delete in {try_store(folder):.2f} s"


def _tracking(config: PretrainConfig) -> tuple[str, str]:
    """A server is asked for its experiments, with the credentials there are; nothing is written to it."""
    uri = tracking_uri(config.tracking.uri, config.storage)
    database = sqlite_path(uri)
    if database is not None:
        with made_for_now(database.parent):
            _write_into(database.parent)
            if not database.exists():
                return uri, f"{database} will be made"
    check_reachable(uri)
    client = connect(uri)
    with plain_errors(uri):
        client.search_experiments(max_results=1)
    return uri, f"{place(uri)} answers, and lists its experiments"


def _ray(config: PretrainConfig) -> str:
    from pipelines.ray_context import start_ray

    knock(config.ray.cluster)
    start_ray(config.ray.cluster, workers=worker_bounds(config.train)[1])
    nodes = nodes_for_workers()
    return f"{len(nodes)} node(s): {', '.join(node.address for node in nodes[:8])}{'…' if nodes[8:] else ''}"


def knock(address: str | None) -> None:
    """Raises UserError where nothing listens: Ray itself tries for a minute, and then ends the process."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()
        except OSError as error:
            raise UserError(f"nothing answers at the Ray address {address} ({error}): is the cluster up?") from error


def _workers(config: PretrainConfig) -> tuple[Resource, int, str]:
    """Nodes are asked for and waited for as the run does."""
    least, most = worker_bounds(config.train)
    need, patience = workers_need(least, config.train.device), config.ray.patience_seconds
    with suppress(Resumable):  # the verdict says it with what to do
        wait_for_room(need, least=least, most=most, stop=StopSignals(), settle=False, patience_seconds=patience)
    return verdicts.room_for_workers(nodes_for_workers(), workers=(least, most), free=room, device=config.train.device)


def _all_reduce(bytes_of: Sizes | None, need: Resource, workers: int) -> str:
    summing = sum_on_workers(workers=workers, need=need, patience_seconds=_SUM_SECONDS)
    return verdicts.sums_are_right(summing, bytes_of and bytes_of.gradient)


def _leave_ray() -> None:
    import ray

    ray.shutdown()
