"""Is the run's storage the same folder on every node? The driver writes a token, and every node has to read it.

A worker on a node with a folder of its own at that path would train, and its metrics and checkpoints would be on that
node's disk: nobody would see the difference before the end, or before the first failure.
"""

import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from pipelines.cluster_room import Resource
from pipelines.mlflow_connection import check_reachable, sqlite_path
from pipelines.scouts import Answer, Node, Question, Scouts, nodes_for_workers
from ssl_core.errors import UserError
from ssl_core.storage.local import made_for_now
from ssl_core.storage.s3 import Folder

_PATIENCE_SECONDS = 20.0
_SERVER_SECONDS = 2.0
_NAMES_SECONDS = 10.0  # that a network file system may take to show a name that another machine has made
_WHERE = {"storage": "on", "tracking": "seen from"}


class SharedPlaces:
    """What every node of a run has to reach: its folders, and the tracker.

    Args:
        folders: those in a bucket are not looked at, nor others twice.
        uri: of the tracker; one in a file is one more folder.
    """

    def __init__(self, folders: Sequence[Folder], uri: str | None = None) -> None:
        database = sqlite_path(uri) if uri else None
        local = [folder for folder in folders if isinstance(folder, Path)]
        if database:
            local.append(database.parent)
        self._folders = list(dict.fromkeys(local))
        self._server = uri if uri and database is None else None
        self._seen_by: set[str] = set()

    @contextmanager
    def questions(self) -> Generator[dict[str, Question]]:
        """Within: what to ask of a node, `storage` and, where there is a server, `tracking`."""
        with ExitStack() as stack:
            tokens = [stack.enter_context(_token_in(folder)) for folder in self._folders]
            asked: dict[str, Question] = {"storage": partial(read_tokens, dict(tokens))} if tokens else {}
            if self._server:
                asked["tracking"] = partial(check_reachable, self._server, patience_seconds=_SERVER_SECONDS)
            yield asked

    def check(self, need: Resource) -> None:
        """Ask the nodes that a worker may be placed on, those that were not asked before; nothing on one node.

        A node that does not answer is left to the attempt, which may lose it or do without it. A tracker that the
        driver does not reach either is away: then the run goes on without, and the nodes are asked again.

        Raises:
            UserError: a node answers that it does not reach something.
        """
        nodes = nodes_for_workers(need)
        new = [node for node in nodes if node.node_id not in self._seen_by]
        if len(nodes) < 2 or not new:
            return
        scouts = Scouts(new)
        try:
            with self.questions() as questions:
                found = scouts.look(questions, _PATIENCE_SECONDS)
        finally:
            scouts.close()
        away = any(_complaint(answers, "tracking") for _, answers in found) and not self._driver_reaches_server()
        for node, answers in found:
            raise_complaint(node, answers, ("storage",) if away else ("storage", "tracking"))
            if not away:
                self._seen_by.add(node.node_id)

    def _driver_reaches_server(self) -> bool:
        assert self._server, "who does not ask about a server hears no complaint"
        try:
            check_reachable(self._server, patience_seconds=_SERVER_SECONDS)
        except UserError:
            return False
        return True


def read_tokens(tokens: Mapping[str, str]) -> None:
    """Read every token; asked of a node.

    Args:
        tokens: path → what has to be in the file.

    Raises:
        UserError: a file is not there, or is another one.
    """
    end = time.monotonic() + _NAMES_SECONDS
    for name, wanted in tokens.items():
        path = Path(name)
        while (found := _text(path)) != wanted:
            if time.monotonic() > end:
                what = "does not show" if found is None else "shows another file than"
                raise UserError(
                    f"{path.parent} {what} what the driver has just written there: storage= and a local checkpoints= "
                    "have to be on a file system that all nodes share"
                )
            time.sleep(0.2)


def raise_complaint(node: Node, answers: Mapping[str, Answer], names: Sequence[str]) -> None:
    """Raise UserError where a node's answer to one of these questions says that it does not reach something."""
    for name in names:
        if complaint := _complaint(answers, name):
            raise UserError(f"{_WHERE[name]} {node}: {complaint}")


def _complaint(answers: Mapping[str, Answer], name: str) -> str | None:
    answer = answers.get(name)
    return answer and answer.error


@contextmanager
def _token_in(folder: Path) -> Generator[tuple[str, str]]:
    """Within: a file in the folder with a text that nobody can guess."""
    token = uuid.uuid4().hex
    path = folder.resolve() / f".shared-{token[:8]}"
    with made_for_now(folder):
        try:
            path.write_text(token, encoding="ascii")
            yield str(path), token
        finally:
            path.unlink(missing_ok=True)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
