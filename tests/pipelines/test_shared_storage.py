"""A run on several nodes is refused where one of them does not reach its folders or the tracker."""

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipelines.scouts import Answer, Node, Question, answers
from pipelines.shared_storage import SharedPlaces, read_tokens
from ssl_core.errors import UserError
from ssl_core.storage.s3 import S3Location

HERE, THERE, NEW = (Node(node_id=name * 8, address=f"10.0.0.{n}", resources={"CPU": 1}) for n, name in enumerate("abc"))
Sees = Callable[[dict[str, Question]], dict[str, Question]]


class Cluster:
    """Nodes in this process; a node may see other disks than this one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes = [HERE, THERE]
        self.sees: dict[Node, Sees] = {}
        self.asked: list[Node] = []
        self.away: set[Node] = set()
        monkeypatch.setattr("pipelines.shared_storage.nodes_for_workers", self.nodes_for_workers)
        monkeypatch.setattr("pipelines.shared_storage.Scouts", partial(FakeScouts, self))
        monkeypatch.setattr("pipelines.shared_storage._NAMES_SECONDS", 0.0)

    def nodes_for_workers(self, need: str) -> list[Node]:
        return self.nodes


class FakeScouts:
    def __init__(self, cluster: Cluster, nodes: Sequence[Node]) -> None:
        self._cluster, self._nodes = cluster, nodes
        cluster.asked += nodes

    def look(self, questions: Mapping[str, Question], patience_seconds: float) -> list[tuple[Node, dict[str, Answer]]]:
        return [
            (node, answers(self._cluster.sees.get(node, lambda same: same)(dict(questions)), patience_seconds))
            for node in self._nodes
            if node not in self._cluster.away
        ]

    def close(self) -> None: ...


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def a_disk_of_its_own(folder: Path) -> Sees:
    """The same paths, below another root."""

    def sees(questions: dict[str, Question]) -> dict[str, Question]:
        asked: Any = questions["storage"]
        (tokens,) = asked.args
        return questions | {"storage": partial(read_tokens, {f"{folder}{path}": text for path, text in tokens.items()})}

    return sees


def refuses(*arguments: Any) -> None:
    raise UserError("the tracking server at 127.0.0.1:5000 does not answer")


@contextmanager
def listening(folder: Path) -> Generator[str]:
    """A server that is well, as far as anybody asks."""
    (folder / "health").touch()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_what_all_nodes_share_passes_and_nothing_is_left(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    SharedPlaces([tmp_path / "run", tmp_path / "else/where", S3Location("bucket", "key")]).check("CPU")
    assert cluster.asked == [HERE, THERE]
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]


@pytest.mark.parametrize("folder", ["run", "checkpoints", "tracker"])
def test_a_node_with_a_disk_of_its_own_is_refused_by_name(cluster: Cluster, tmp_path: Path, folder: str) -> None:
    own = tmp_path / "own"
    for name in {"run", "checkpoints", "tracker"} - {folder}:  # these are shared: a link on that node
        (tmp_path / name).mkdir()
        place = Path(f"{own}{tmp_path / name}")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(tmp_path / name)
    cluster.sees[THERE] = a_disk_of_its_own(own)
    shared = SharedPlaces([tmp_path / "run", tmp_path / "checkpoints"], f"sqlite:///{tmp_path}/tracker/mlflow.db")
    with pytest.raises(
        UserError, match=rf"^on node 10.0.0.1 \(bbbbbbbb\): .*/{folder} does not show .*all nodes share$"
    ):
        shared.check("CPU")


def test_a_tracker_that_a_node_does_not_reach_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    cluster.sees[HERE] = lambda questions: {name: (lambda: None) for name in questions}
    cluster.sees[THERE] = lambda questions: questions | {"tracking": refuses}
    with (
        listening(tmp_path) as tracker,
        pytest.raises(UserError, match=r"^seen from node 10.0.0.1 .* does not answer"),
    ):
        SharedPlaces([tmp_path], tracker).check("CPU")


def test_a_tracker_that_nobody_reaches_is_away_and_the_run_goes_on(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.shared_storage._SERVER_SECONDS", 0.0)
    shared = SharedPlaces([tmp_path], "http://127.0.0.1:9")
    shared.check("CPU")
    shared.check("CPU")
    assert cluster.asked == [HERE, THERE] * 2
    cluster.sees[THERE] = a_disk_of_its_own(tmp_path / "own")
    with pytest.raises(UserError, match=r"^on node 10.0.0.1 .* does not show"):
        shared.check("CPU")


def test_one_node_is_not_asked(cluster: Cluster, tmp_path: Path) -> None:
    cluster.nodes = [HERE]
    SharedPlaces([tmp_path]).check("CPU")
    assert cluster.asked == []


def test_nodes_that_join_are_asked_and_no_node_twice(cluster: Cluster, tmp_path: Path) -> None:
    shared = SharedPlaces([tmp_path])
    cluster.away.add(THERE)  # its end is the attempt's to notice; it is asked again when it is back
    shared.check("CPU")
    cluster.nodes.append(NEW)
    cluster.away.clear()
    shared.check("CPU")
    shared.check("CPU")
    assert cluster.asked == [HERE, THERE, THERE, NEW]


def test_another_file_of_the_same_name_is_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.shared_storage._NAMES_SECONDS", 0.0)
    (tmp_path / "token").write_text("another")
    with pytest.raises(UserError, match="shows another file"):
        read_tokens({str(tmp_path / "token"): "mine"})
