"""A server ends when it is asked to, and with whoever started it, however that one ends."""

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from cluster.object_store import free_ports
from cluster.process_tree import kill_tree, process_tree
from cluster.server_process import ServerProcess

_STARTER = """
import sys
from pathlib import Path
from cluster.server_process import ServerProcess
url, log, *command = sys.argv[1:]
server = ServerProcess(name="the server", command=command, url=url, log=Path(log))
server.start()
print(server.pid, flush=True)
sys.stdin.read()
"""


def server_in(folder: Path) -> tuple[str, list[str]]:
    """Its URL and its command."""
    (port,) = free_ports(1)
    (folder / "here").write_text("it is")
    return f"http://127.0.0.1:{port}/here", [sys.executable, "-m", "http.server", "--bind=127.0.0.1", str(port)]


@pytest.mark.slow
def test_it_stops_and_comes_back(tmp_path: Path) -> None:
    url, command = server_in(tmp_path)
    server = ServerProcess(name="the server", command=command, url=url, log=tmp_path / "log")
    for end in (server.stop, server.kill, server.stop):
        server.start()
        try:
            assert urllib.request.urlopen(url).read() == b"it is"  # of the log's folder
            tree = process_tree(server.pid)
            assert any("http.server" in line for line in tree.values())
        finally:
            end()
        assert process_tree(*tree) == {}


@pytest.mark.slow
def test_one_that_ends_at_once_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit(3)"]
    server = ServerProcess(name="the server", command=command, url="http://127.0.0.1:9", log=tmp_path / "log")
    with pytest.raises(RuntimeError, match=f"^the server ended at once, status 3: see {tmp_path}/log$"):
        server.start()


@pytest.mark.slow
def test_it_ends_with_a_starter_that_was_killed(tmp_path: Path, root: Path) -> None:
    url, command = server_in(tmp_path)
    words = [sys.executable, "-c", _STARTER, url, str(tmp_path / "log"), *command]
    with subprocess.Popen(words, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout
        tree = process_tree(int(starter.stdout.readline()))
        try:
            assert any("http.server" in line for line in tree.values())
            starter.send_signal(signal.SIGKILL)
            end = time.monotonic() + 20
            while process_tree(*tree) and time.monotonic() < end:
                time.sleep(0.05)
            assert process_tree(*tree) == {}
        finally:
            kill_tree(*tree)
