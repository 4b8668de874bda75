"""A process that answers tasks, from the side of who gives them; see `ssl_core.data.answering` for the inside.

It is a fresh interpreter that is given pipes and nothing else: no fork of a process that has threads (Ray's, gRPC's,
CUDA's), no second run of its main module, no semaphore, no name in the file system. It ends with whoever started it.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from multiprocessing import Pipe
from threading import Lock, Thread
from typing import Any, Generic, TypeVar

from ssl_core.data.answering import Answer, Task
from ssl_core.errors import WorkerLost

_SECONDS_TO_END = 5.0
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # no pools that never work
_KEEPS_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}  # glibc: 10 % fewer seconds

WorkT = TypeVar("WorkT")
ValueT = TypeVar("ValueT")


class FreshInterpreter(Generic[WorkT, ValueT]):
    """One process, and a thread that listens to it.

    Args:
        module: its `main` is what the process runs; the command line has the descriptor of the answers, then `passed`.
        name: of the kind of process, for messages.
        passed: further descriptors that it is given.
        hear: called with what an answer tells besides, before anybody gets its value.
    """

    def __init__(
        self, module: str, *, name: str, passed: tuple[int, ...] = (), hear: Callable[[Any], None] = lambda news: None
    ) -> None:
        their_tasks, self._tasks = Pipe(duplex=False)
        self._answers, their_answers = Pipe(duplex=False)
        with their_tasks, their_answers:
            descriptors = (their_answers.fileno(), *passed)
            self._process = subprocess.Popen(
                # -P: the folder that this happens to run in is no place to import from
                [sys.executable, "-P", "-c", f"from {module} import main; main()", *map(str, descriptors)],
                stdin=their_tasks.fileno(),
                pass_fds=descriptors,
                process_group=0,  # a terminal's Ctrl-C is for who started it alone
                env={**os.environ, **_ONE_THREAD, **_KEEPS_FREED_MEMORY, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        self._name, self._hear = name, hear
        self._numbers = count()
        self._waiting: dict[int, Future[ValueT]] = {}
        self._lost: WorkerLost | None = None
        self._lock = Lock()
        self._listener = Thread(target=self._listen, name="-".join((*name.split()[:-1], "listener")), daemon=True)
        self._listener.start()

    @property
    def num_waiting(self) -> int:
        """Tasks without an answer."""
        return len(self._waiting)

    def submit(self, work: WorkT) -> Future[ValueT]:
        """Have a task done."""
        number, future = next(self._numbers), Future[ValueT]()
        with self._lock:
            if self._lost is not None:
                future.set_exception(self._lost)
                return future
            self._waiting[number] = future
        self.send(Task(number=number, work=work))
        return future

    def send(self, message: object) -> None:
        """Write to the process; where it is gone, the listener says so to all who wait."""
        with suppress(BrokenPipeError):
            self._tasks.send(message)

    def end(self) -> None:
        """Tell the process that nothing more comes: it leaves at once."""
        self._tasks.close()

    def join(self) -> None:
        """Wait until it is gone; kill it where it does not go."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)
        self._process.kill()
        self._listener.join()
        self._answers.close()

    def _listen(self) -> None:
        try:
            while True:
                answer: Answer = self._answers.recv()
                if answer.news is not None:
                    self._hear(answer.news)
                with self._lock:
                    future = self._waiting.pop(answer.number)
                if answer.error is None:
                    future.set_result(answer.value)
                else:
                    future.set_exception(answer.error)
        except (EOFError, OSError):
            pass  # it is gone, or about to be
        finally:
            self._process.kill()
            lost = WorkerLost(_how_it_ended(self._name, self._process.pid, self._process.wait()))
            with self._lock:
                self._lost = lost
            for future in self._waiting.values():
                future.set_exception(lost)


def _how_it_ended(name: str, pid: int, status: int) -> str:
    """In words, from the exit status that `subprocess` gives."""
    if status < 0:
        why = "; the machine may have run out of memory" if -status == signal.SIGKILL else ""
        return f"a {name} (pid {pid}) was killed (signal {-status}{why})"
    return f"a {name} (pid {pid}) ended with exit status {status}; it said why on standard error"
