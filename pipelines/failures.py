"""What the end of an attempt means: try again, stop and continue later, or fail.

When one worker dies, its peers lose their connections and raise as well, and Ray may hear of those first; a worker that
raises by itself makes the others wait until they are ended. So the errors of all workers are weighed together.
"""

import traceback
from collections.abc import Generator, Mapping, Sequence
from typing import Any, cast

from pipelines.heartbeat import Kind, LastWords
from ssl_core.errors import NonFiniteLoss, Resumable, UserError, WorkerLost

_WEIGHT: Sequence[Kind] = (
    "code",
    "user",
    "diverged",
    "resumable",
    "lost",
)  # the first of them that any worker said counts
_REASONS = {  # what Ray says of a lost worker → what it means
    "running low on memory": "its node ran out of memory, and Ray killed it",
    "node has died": "its node is gone",
    "node was terminated": "its node is gone",
    "unavailable": "neither its process nor its node answers",
    "health check has been hanging": "it does not answer",
    "unexpectedly exits": "its process ended unexpectedly",
    "killed": "its process was killed",
}
_OF_TORCH_DISTRIBUTED = {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"}


class WorkerFailed(RuntimeError):
    """Code on a worker raised; `said` is its own traceback."""

    def __init__(self, said: str) -> None:
        super().__init__((said.strip() or "it said nothing").splitlines()[-1])
        self.said = said


def last_words(error: BaseException, *, attempt: int, rank: int) -> LastWords:
    """What a worker says of the exception that ends it."""
    kind = _kind(error)
    said = "".join(traceback.format_exception(error)) if kind == "code" else str(error)
    return LastWords(attempt=attempt, rank=rank, kind=kind, said=said)


def meaning(error: BaseException, words: Sequence[LastWords], whereabouts: Mapping[int, str]) -> Exception:
    """What an attempt ended with, as one exception.

    A worker that went away explains everything else: what is wrong with the code comes again in the next attempt.

    Args:
        error: what `TorchTrainer.fit()` raised.
        words: of the workers that raised.
        whereabouts: node and process of each worker by rank, as people read them.

    Returns:
        WorkerLost: another attempt may do it. UserError, Resumable, WorkerFailed: it would not, in the words of the
        worker that raised.
    """
    failures = cast(Mapping[int, BaseException], getattr(error, "worker_failures", {}))
    for rank, failure in sorted(failures.items()):
        if "HealthCheck" in type(failure).__name__:
            return WorkerLost(f"worker {rank}{whereabouts.get(rank, '')} went away ({_why(failure)})")
    for kind in _WEIGHT:
        for said in sorted((one for one in words if one.kind == kind), key=lambda one: one.rank):
            return _spoken(said)
    for failure in failures.values():
        return WorkerFailed("".join(traceback.format_exception(failure)))
    return _before_the_workers_ran(error)


def _kind(error: BaseException) -> Kind:
    if isinstance(error, WorkerLost) or type(error).__name__ in _OF_TORCH_DISTRIBUTED:
        return "lost"
    if isinstance(error, RuntimeError) and "gloo/transport" in str(error):
        return "lost"
    if isinstance(error, NonFiniteLoss):
        return "diverged"
    return "user" if isinstance(error, UserError) else "resumable" if isinstance(error, Resumable) else "code"


def _spoken(words: LastWords) -> Exception:
    if words.kind == "code":
        return WorkerFailed(words.said)
    if words.kind == "lost":
        return WorkerLost(f"worker {words.rank}: {words.said}")
    known = {"user": UserError, "diverged": NonFiniteLoss, "resumable": Resumable}
    return known[words.kind](words.said)


def _before_the_workers_ran(error: BaseException) -> Exception:
    """Ray could not start the workers; the code's fault where a worker raised what no network or machine raises."""
    from ray.exceptions import RayTaskError

    if "error raised in its creation task" in str(error):  # what the workers shall run cannot be read there
        return WorkerFailed(str(error))
    for cause in _causes(error):
        inner = getattr(cause, "cause", None)
        if isinstance(cause, RayTaskError) and not isinstance(inner, OSError | RuntimeError | None):
            return WorkerFailed(str(cause))
    said = str(getattr(error, "controller_failure", error)).strip() or type(error).__name__
    return WorkerLost(f"the workers could not be started ({said.splitlines()[-1].strip()})")


def _why(failure: BaseException) -> str:
    """Why Ray lost a worker, in a few words."""
    inner = getattr(failure, "health_check_failure", failure)
    text = " ".join(str(inner).split())
    for sign, reason in _REASONS.items():
        if sign in text:
            return reason
    return f"{text[:200]}…" if len(text) > 200 else text or type(inner).__name__


def _causes(error: BaseException) -> Generator[BaseException]:
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        one = pending.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        pending += [
            one.__cause__,
            one.__context__,
            getattr(one, "cause", None),
            getattr(one, "controller_failure", None),
        ]
