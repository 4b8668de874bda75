"""Workers know how many of them share their node."""

from collections.abc import Sequence
from unittest.mock import patch

from gloo_pool import GlooPool

from pipelines.worker import workers_here
from ssl_core.collectives import Collectives


def counted(collectives: Collectives, nodes: Sequence[str]) -> int:
    """What a worker of the node with its name counts."""
    with patch("socket.gethostname", lambda: nodes[collectives.rank]):
        return workers_here(collectives)


def test_each_worker_counts_those_of_its_node(pool: GlooPool) -> None:
    assert pool.run(3, counted, ["a", "b", "a"]) == [2, 1, 2]
