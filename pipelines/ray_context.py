"""The run's platform as Ray Train sees it, and how this project starts a Ray of its own: on loopback, with a token."""

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from pipelines.heartbeat import Heart, heart_of_this_worker
from ssl_core.collectives import Collectives
from ssl_core.storage.s3 import Folder
from ssl_core.train.context import Doing


@dataclass(frozen=True, kw_only=True)
class RayContext:
    """`ssl_core.train.context.RunContext` inside a Ray Train worker."""

    folder: Path
    attempt: int
    checkpoints: Folder
    collectives: Collectives
    device: torch.device
    heart: Heart

    @classmethod
    def of_this_worker(cls, folder: Path, attempt: int, checkpoints: Folder, board: Any) -> "RayContext":
        """Read rank and world from Ray Train, whose backend has formed the process group.

        Args:
            folder: the run's.
            attempt: which one of the run.
            checkpoints: where they are.
            board: the actor that beats are posted to (`pipelines.heartbeat`).
        """
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        collectives = Collectives(rank=context.get_world_rank(), world=context.get_world_size())
        return cls(
            folder=folder,
            attempt=attempt,
            checkpoints=checkpoints,
            collectives=collectives,
            device=ray.train.torch.get_device(),
            heart=heart_of_this_worker(board, attempt=attempt, rank=collectives.rank),
        )

    def should_stop(self) -> bool:
        """Whether the answer to the last beat said so."""
        return self.heart.asked_to_stop

    def at(self, step: int, doing: Doing) -> None:
        """Noted for the next beat."""
        self.heart.at(step, doing)


def call_on_ray(function: Callable[..., Any], *arguments: Any, max_retries: int) -> Any:
    """Call a function in a process of its own on the Ray that is running, with a GPU where there is one.

    Args:
        function: of this package; what it returns comes back.
        arguments: plain values.
        max_retries: where its process is lost.
    """
    import ray

    gpus = 1 if float(ray.cluster_resources().get("GPU", 0)) >= 1 else 0
    # "DEFAULT": an actor of Ray Tune would otherwise keep the task within its own reservation
    task: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=max_retries, scheduling_strategy="DEFAULT")(function)
    return cast(Any, ray).get(task.remote(*arguments))


@contextmanager
def ray_for(address: str | None, *, workers: int) -> Generator[None]:
    """Within: Ray runs, as `start_ray` starts it; afterwards this process has left it."""
    start_ray(address, workers=workers)
    try:
        yield
    finally:
        import ray

        ray.shutdown()


def start_ray(address: str | None, *, workers: int) -> None:
    """Join the cluster at `address`, or start a Ray on this machine's loopback interface with token authentication.

    A local Ray gets as many logical CPUs as there are workers even where the machine has fewer cores: otherwise it
    would wait for ever. Threads per worker are set by the worker itself.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")  # the driver has looked for room before
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # the driver looks for draining nodes itself
    os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", "5")  # peers of a worker that failed wait for it
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address:
        arguments["address"] = address
    else:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = (
            "0"  # keeps every socket on 127.0.0.1 (Ray resolves it otherwise)
        )
        arguments |= {
            "address": "local",  # not the one that happens to run on this machine
            "_node_ip_address": "127.0.0.1",
            "num_cpus": max(os.cpu_count() or 1, workers) + 1,  # one more for the probe while workers are still leaving
            "include_dashboard": False,
            "object_store_memory": 200 * 2**20,
        }
    import ray

    ray.init(**arguments)
