"""Scouts: a small actor on each node of the cluster, which looks at things there and says what it saw.

It takes a process and none of Ray's CPUs. A node that does not answer in time is named, and not waited for any longer.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pipelines.cluster_room import Resource
from ssl_core.errors import Resumable, UserError

_START_SECONDS = 60.0  # for a process on a node, beside what its questions may take
_ROUND_TRIPS = 7

Question = Callable[[], Any]
"""What is asked of a node: a function of a module, or a `partial` of one, so that the node finds it by its name."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of the cluster's table."""

    node_id: str
    address: str
    resources: Mapping[str, float] = field(compare=False)

    def __str__(self) -> str:
        return f"node {self.address} ({self.node_id[:8]})"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a question gave: a value, or why there is none."""

    value: Any = None
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Offset:
    """How far a node's clock is ahead of this machine's, in seconds, and how exactly that is known."""

    seconds: float
    bound: float


class Scout:
    """The actor."""

    def clock(self) -> float:
        """This node's time, in seconds."""
        return time.time()

    def look(self, questions: Mapping[str, Question], patience_seconds: float) -> dict[str, Answer]:
        """See `answers`."""
        return answers(questions, patience_seconds)


def answer_to(question: Question) -> Answer:
    """Ask here and now."""
    began = time.monotonic()
    try:
        return Answer(value=question(), seconds=time.monotonic() - began)
    except (UserError, Resumable, OSError) as error:
        said = str(error)
    except Exception as error:  # noqa: BLE001 (it is said: the other questions are answered all the same)
        said = f"{type(error).__name__}: {error}"
    return Answer(error=said, seconds=time.monotonic() - began)


def answers(questions: Mapping[str, Question], patience_seconds: float) -> dict[str, Answer]:
    """Ask all at once, each in a thread of its own; what is not there in time (a mount that hangs) is said to be so."""
    found: dict[str, Answer] = {}

    def ask(name: str, question: Question) -> None:
        found[name] = answer_to(question)

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in questions.items()]
    for thread in threads:
        thread.start()
    end = time.monotonic() + patience_seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    late = Answer(error=f"no answer within {patience_seconds:.0f} s", seconds=patience_seconds)
    return {name: found.get(name, late) for name in questions}


class Scouts:
    """A scout on each of these nodes, on a Ray that is started.

    Attributes:
        silent: nodes that have not answered, and why as far as that is known.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote: Any = ray.remote(num_cpus=0)(Scout)
        self.silent: dict[Node, str] = {}
        self._actors = [
            (
                node,
                remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=False)).remote(),
            )
            for node in nodes
        ]

    def look(self, questions: Mapping[str, Question], patience_seconds: float) -> list[tuple[Node, dict[str, Answer]]]:
        """Ask all nodes; of those that do not answer, `silent` says why."""
        import ray

        asked = [(node, actor.look.remote(dict(questions), patience_seconds)) for node, actor in self._actors]
        waiting = [answer for _, answer in asked]
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=patience_seconds + _START_SECONDS)
        found: list[tuple[Node, dict[str, Answer]]] = []
        for node, answer in asked:
            if answer not in ready:
                self.silent[node] = f"no answer within {patience_seconds + _START_SECONDS:.0f} s"
                continue
            try:
                found.append((node, cast(dict[str, Answer], ray.get(answer))))
            except Exception as error:  # noqa: BLE001 (whatever a node raises is what is wrong with it)
                self.silent[node] = _last_line(error)
        return found

    def offsets(self) -> list[tuple[Node, Offset]]:
        """The clocks of the nodes that answer: of several round trips the quickest bounds the error best."""
        import ray

        found: list[tuple[Node, Offset]] = []
        for node, actor in self._actors:
            if node in self.silent:
                continue

            def ask(actor: Any = actor) -> float:
                return cast(Any, ray).get(actor.clock.remote(), timeout=10)

            try:
                found.append((node, clock_offset(ask)))
            except Exception as error:  # noqa: BLE001 (as above)
                self.silent[node] = _last_line(error)
        return found

    def close(self) -> None:
        """End them."""
        import ray

        for _, actor in self._actors:
            ray.kill(actor)


def clock_offset(ask: Callable[[], float], now: Callable[[], float] = time.time) -> Offset:
    """How far another clock is ahead, from round trips to it."""
    found: list[Offset] = []
    for _ in range(_ROUND_TRIPS):
        sent = now()
        there = ask()
        back = now()
        found.append(Offset(seconds=there - (sent + back) / 2, bound=(back - sent) / 2))
    return min(found, key=lambda offset: offset.bound)


def nodes_for_workers(need: Resource | None = None) -> list[Node]:
    """The living nodes that workers may be placed on, and the driver's own.

    Args:
        need: what a worker needs one of; None: any of them.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    table = cast(list[dict[str, Any]], ray.nodes())
    nodes = [
        Node(node_id=row["NodeID"], address=row["NodeManagerAddress"], resources=row["Resources"])
        for row in table
        if row["Alive"]
    ]
    kinds: tuple[Resource, ...] = ("CPU", "GPU") if need is None else (need,)
    return [node for node in nodes if node.node_id == here or any(node.resources.get(kind, 0) >= 1 for kind in kinds)]


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()
