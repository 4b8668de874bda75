"""A server on this machine that can be stopped and started again as it was: same command, same port, same files.

    python -m cluster.server_process <folder> <command> …       what stands between: it runs the command in the folder

It lives until its standard input ends, as a Ray node does (`cluster.ray_node`): also where its starter was killed.
"""

import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from types import FrameType
from typing import IO, cast

from cluster.process_tree import kill_tree, process_tree

_START_SECONDS = 180.0  # a new database takes MLflow seven seconds, and a minute on a machine with much else to do


@dataclass(kw_only=True)
class ServerProcess:
    """What to run, and where it answers."""

    name: str
    command: Sequence[str]
    url: str  # answers by any status once the server is up
    log: Path
    environment: Mapping[str, str] | None = None
    stop_seconds: float = 5.0  # after a SIGTERM
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    @property
    def pid(self) -> int:
        """Its process id while it runs."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            RuntimeError: it did not come up; the message names its log.
        """
        assert self._process is None, f"{self.name} runs already"
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cluster.server_process", str(self.log.parent), *self.command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,  # a Ctrl-C is for whoever started it, who then stops it
            )
        end = time.monotonic() + _START_SECONDS
        while self._process.poll() is None and time.monotonic() < end:
            try:
                urllib.request.urlopen(self.url, timeout=1).close()
                return
            except urllib.error.HTTPError:
                return
            except (OSError, HTTPException):  # a port that answers before its server does
                time.sleep(0.1)
        ended = self._process.poll()
        self.kill()
        what = f"did not come up in {_START_SECONDS:.0f} s" if ended is None else f"ended at once, status {ended}"
        raise RuntimeError(f"{self.name} {what}: see {self.log}")

    def stop(self) -> None:
        """Ask it to end, and end it where it takes too long; nothing where it does not run."""
        if self._process is not None:
            family = process_tree(self._process.pid)
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(self.stop_seconds)
            kill_tree(*family)
            self.kill()

    def kill(self) -> None:
        """End it and all its processes at once; nothing where it does not run."""
        if self._process is not None:
            kill_tree(self._process.pid)
            self._process.wait()
            cast(IO[bytes], self._process.stdin).close()
            self._process = None


def main() -> None:
    """Run a server, and hand on SIGTERM; leaves with its status."""
    folder, *command = sys.argv[1:]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=folder)

    def hand_on(number: int, frame: FrameType | None) -> None:
        server.terminate()

    def end_with_starter() -> None:
        sys.stdin.read()
        kill_tree(server.pid)

    signal.signal(signal.SIGTERM, hand_on)
    threading.Thread(target=end_with_starter, daemon=True).start()
    sys.exit(server.wait())


if __name__ == "__main__":
    main()
