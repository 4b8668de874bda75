"""Worker processes that stay: importing torch and timm is paid for once, not in every test.

A task is a function of an importable module, called as `function(collectives, *arguments)` in `world` processes
that have formed a gloo group for it.
"""

import importlib
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ssl_core.collectives import leave_group, start_gloo

Task = Callable[..., Any]
_PROCESSES = 4
_TIMEOUT_SECONDS = 120.0  # for a machine with other things to do; a test takes about one
_GROUP_TIMEOUT_SECONDS = 60.0


class TaskFailed(AssertionError):
    """A worker's own traceback."""


class GlooPool:
    """Up to four processes, started when they are first needed; `close` ends them."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[tuple[Any, Connection]] = []

    def run(self, world: int, function: Task, *arguments: Any) -> list[Any]:
        """Results in rank order.

        Raises:
            TaskFailed: on some worker the function raised, died or did not end.
        """
        if not self._workers:
            self._workers = [self._start() for _ in range(_PROCESSES)]
        address = f"127.0.0.1:{_free_port()}"
        pipes = [pipe for _, pipe in self._workers[:world]]
        for rank, pipe in enumerate(pipes):
            pipe.send((rank, world, address, function, arguments))
        answers: list[tuple[str, Any]] = []
        for rank, pipe in enumerate(pipes):
            try:
                answers.append(pipe.recv() if pipe.poll(_TIMEOUT_SECONDS) else ("hung", f"rank {rank} did not answer"))
            except EOFError:
                answers.append(("died", f"rank {rank} died"))
        if any(how in ("hung", "died") for how, _ in answers):
            self.close()
        said = [text for how, text in answers if how != "done"]
        if said:
            raise TaskFailed("\n".join(said))
        return [value for _, value in answers]

    def _start(self) -> tuple[Any, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def close(self) -> None:
        """End all processes; a later `run` starts new ones."""
        for process, pipe in self._workers:
            pipe.close()
            process.terminate()
            process.join()
        self._workers.clear()


def serve(pipe: Connection) -> None:
    """The life of a worker process: take tasks until the pipe closes."""
    import torch

    importlib.import_module("ssl_core.methods")  # before the first task, so that workers meet without waiting long

    torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
    while True:
        try:
            rank, world, address, function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            workers = start_gloo(rank, world, address, timeout_seconds=_GROUP_TIMEOUT_SECONDS)
            pipe.send(("done", function(workers, *arguments)))
        except BaseException:  # noqa: BLE001 (whatever it is, the test's process raises it again)
            pipe.send(("failed", traceback.format_exc()))
        finally:
            leave_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
