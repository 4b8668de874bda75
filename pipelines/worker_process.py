"""What Ray Train runs in each worker's process.

Nothing heavy is imported on top: several processes of Ray's own pass this function on to the workers, and each of them
imports its module, at every attempt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_core.train.context import RunContext
    from ssl_core.train.loop import LoopResult


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt, as plain values that any worker can read."""

    config: dict[str, Any]
    folder: str
    attempt: int


Body = Callable[[Job, "RunContext"], "LoopResult"]
"""What a worker does within an attempt."""


def ray_worker(job: dict[str, Any]) -> dict[str, Any]:
    """`pipelines.worker.run_worker` as Ray Train's `train_loop_per_worker`; what it returns is the attempt's result.

    Args:
        job: the fields of `Job`, `board`, the actor that beats are posted to, and `body`, which is None but in tests of
            what surrounds a worker.
    """
    from pipelines.failures import last_words
    from pipelines.heartbeat import say_last_words
    from pipelines.ray_context import RayContext
    from pipelines.run_folder import checkpoint_folder
    from pipelines.worker import keep_freed_memory, run_worker

    keep_freed_memory()
    board, body = job.pop("board"), job.pop("body") or run_worker
    work = Job(**job)
    folder = Path(work.folder)
    checkpoints = checkpoint_folder(work.config["checkpoints"], folder)
    context = RayContext.of_this_worker(folder, work.attempt, checkpoints, board)
    context.heart.start()
    try:
        return vars(body(work, context))
    except Exception as error:  # noqa: BLE001 (it is raised again, in words)
        words = last_words(error, attempt=work.attempt, rank=context.collectives.rank)
        say_last_words(board, words)
        raise RuntimeError(words.said) from None  # plain text: Ray may not be able to carry the exception itself
    finally:
        context.heart.close()
