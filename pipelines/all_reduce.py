"""A sum over the workers, as every step makes one: through Ray Train, with gloo or NCCL, checked and timed.

What can be wrong between nodes (a port that is shut, another network interface, a GPU that does not answer) shows here
in a minute instead of in the first step.
"""

import tempfile
import threading
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from pipelines.attempt import ray_trainer
from pipelines.cluster_room import Resource
from ssl_core.errors import UserError

if TYPE_CHECKING:
    import torch

    from ssl_core.collectives import Collectives

SUM_BYTES = 25 << 20  # what the gradients of a step are summed in (ssl_core.train.gradients)
_REPEATS, _SHORT_REPEATS = 5, 50
_GROUP_SECONDS = 60.0  # for the workers to find each other


@dataclass(frozen=True, kw_only=True)
class Summing:
    """What sums over the workers took; `wrong` are ranks that saw another sum than they should have."""

    workers: int
    backend: str
    devices: tuple[str, ...]  # by rank: node and device
    wrong: tuple[int, ...]
    latency_seconds: float  # of one number
    seconds: float  # of SUM_BYTES

    @property
    def bytes_per_second(self) -> float:
        """Of a worker's gradient that is summed in a second (the algorithm's bandwidth, not the bus's)."""
        return SUM_BYTES / self.seconds


def sum_on_workers(*, workers: int, need: Resource, patience_seconds: float) -> Summing:
    """Start so many workers on a Ray that is started, and let them sum.

    Raises:
        UserError: it was not done in time, or something raised; says what.
    """
    outcome: dict[str, Any] = {}

    def fit(folder: str) -> None:
        try:
            trainer = ray_trainer(
                sum_here,
                {},
                workers=workers,
                need=need,
                name="preflight",
                storage=folder,
                group_seconds=_GROUP_SECONDS,
            )
            outcome["result"] = trainer.fit().return_value
        except BaseException as error:  # noqa: BLE001 (said in the other thread)
            outcome["error"] = error

    # only Ray Train's controller looks at the folder, which is on this node
    with tempfile.TemporaryDirectory(prefix="preflight-", ignore_cleanup_errors=True) as folder:
        thread = threading.Thread(target=fit, args=(folder,), daemon=True)
        thread.start()
        thread.join(patience_seconds)
    if "result" in outcome:
        return Summing(**outcome["result"])
    if "error" in outcome:
        reason = _reason(outcome["error"])
        raise UserError(
            f"{workers} worker(s) could not sum ({reason}): {_INSTALL if 'No module named' in reason else _HINT}"
        )
    raise UserError(f"{workers} worker(s) did not end a sum within {patience_seconds:.0f} s: {_HINT}")


_HINT = "may nodes open any port to each other? GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names the network interface"

_INSTALL = "install this version of ssl-pipelines on all nodes"


def sum_here(job: dict[str, Any]) -> dict[str, Any]:
    """What each worker does; the fields of `Summing`."""
    import ray.train
    import ray.train.torch

    from ssl_core.collectives import Collectives

    del job
    context = ray.train.get_context()
    collectives = Collectives(rank=context.get_world_rank(), world=context.get_world_size())
    return summing(collectives, ray.train.torch.get_device(), address=cast(Any, ray).util.get_node_ip_address())


def summing(collectives: "Collectives", device: "torch.device", *, address: str) -> dict[str, Any]:
    """Sum, compare, and take the time, as one of the workers; the fields of `Summing` of all of them."""
    import torch

    def timed(x: torch.Tensor) -> float:
        began = perf_counter()
        collectives.sum_(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - began

    # whole numbers below 2²⁴, where float32 is exact: up to 30 · W(W + 1)/2, so for a thousand workers
    pattern = torch.arange(SUM_BYTES // 4, device=device).remainder_(31).float()
    x = pattern * (collectives.rank + 1)
    collectives.sum_(x)
    right = torch.equal(x, pattern * (collectives.world * (collectives.world + 1) // 2))
    one = torch.zeros(1, device=device)
    latency = median(timed(one) for _ in range(_SHORT_REPEATS))
    x.zero_()
    seconds = median(timed(x) for _ in range(_REPEATS))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    told = collectives.gather_objects((f"{address} {name}", right, latency, seconds))
    return {
        "workers": collectives.world,
        "backend": "nccl" if device.type == "cuda" else "gloo",
        "devices": tuple(device for device, _, _, _ in told),
        "wrong": tuple(rank for rank, (_, right, _, _) in enumerate(told) if not right),
        "latency_seconds": max(latency for _, _, latency, _ in told),
        "seconds": max(seconds for _, _, _, seconds in told),
    }


def _reason(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    said = next(iter(failures.values()), getattr(error, "controller_failure", None)) or error
    lines = str(said).strip().splitlines() or [type(said).__name__]
    return lines[-1].strip()[:300]
