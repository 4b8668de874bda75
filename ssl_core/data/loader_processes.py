"""Loader processes, from the trainer's side: they fill the views of coming batches into shared memory.

Each is a fresh interpreter that is given pipes and nothing else: no fork of a process that has threads (Ray's, gRPC's,
CUDA's), no second run of its main module, no semaphore, no name in the file system. See `ssl_core.data.loader_process`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from itertools import count, cycle
from multiprocessing import Pipe
from threading import Lock, Thread

import numpy as np

from ssl_core.data.lane_views import Making, Samples, parts_of
from ssl_core.data.loader_process import Answer, Task, Work
from ssl_core.data.shared_slots import SharedSlots
from ssl_core.errors import WorkerLost

_PROGRAM = "from ssl_core.data.loader_process import main; main()"
_SECONDS_TO_END = 5.0
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # no pools that never work
_KEEPS_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}  # glibc: 10 % fewer seconds


class LaneProcesses:
    """Makes batches in processes of their own; see `ssl_core.data.lane_views.Makers`.

    Args:
        work: what they work on.
        processes: how many.
    """

    def __init__(self, work: Work, *, processes: int) -> None:
        self._work = work
        self._at_a_time = processes * work.threads
        self._slots = SharedSlots(work.batch_bytes)
        self._processes: list[_LoaderProcess] = []
        try:
            for _ in range(processes):
                self._processes.append(_LoaderProcess(self._slots.file, self._hear))
            for process in self._processes:  # which have been starting meanwhile, all at the same time
                process.send(work)
        except BaseException:
            self.close()
            raise
        self._next = cycle(self._processes)  # a lane mostly meets the same process, which has its shards open

    def start(self, epoch: int, positions: np.ndarray, draws: np.ndarray) -> Making:
        """See `Makers`."""
        slot, memory = self._slots.take()
        parts = parts_of(epoch, positions, draws, at_least=self._at_a_time)
        return Making(
            groups=self._work.groups(memory), parts=[next(self._next).submit(slot, samples) for samples in parts]
        )

    def close(self) -> None:
        """End the processes and wait until they are gone."""
        for process in self._processes:
            process.end()
        for process in self._processes:
            process.join()
        self._slots.close()

    def _hear(self, found: Mapping[int, str]) -> None:
        for position, reason in found.items():
            self._work.images.quarantine.add(position, reason)


class _LoaderProcess:
    """One process, and a thread that listens to it."""

    def __init__(self, slots: int, hear: Callable[[Mapping[int, str]], None]) -> None:
        their_tasks, self._tasks = Pipe(duplex=False)
        self._answers, their_answers = Pipe(duplex=False)
        with their_tasks, their_answers:
            self._process = subprocess.Popen(
                # -P: the folder that this happens to run in is no place to import from
                [sys.executable, "-P", "-c", _PROGRAM, str(their_answers.fileno()), str(slots)],
                stdin=their_tasks.fileno(),
                pass_fds=(their_answers.fileno(), slots),
                process_group=0,  # a terminal's Ctrl-C is for the trainer alone
                env={**os.environ, **_ONE_THREAD, **_KEEPS_FREED_MEMORY, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        self._hear = hear
        self._numbers = count()
        self._waiting: dict[int, Future[None]] = {}
        self._lost: WorkerLost | None = None
        self._lock = Lock()
        self._listener = Thread(target=self._listen, name="loader-listener", daemon=True)
        self._listener.start()

    def submit(self, slot: int, samples: Samples) -> Future[None]:
        """Have some samples filled in."""
        task, future = Task(number=next(self._numbers), slot=slot, samples=samples), Future[None]()
        with self._lock:
            if self._lost is not None:
                future.set_exception(self._lost)
                return future
            self._waiting[task.number] = future
        self.send(task)
        return future

    def send(self, message: Work | Task) -> None:
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
                self._hear(answer.found)
                with self._lock:
                    future = self._waiting.pop(answer.number)
                if answer.error is None:
                    future.set_result(None)
                else:
                    future.set_exception(answer.error)
        except (EOFError, OSError):
            pass  # it is gone, or about to be
        finally:
            self._process.kill()
            lost = WorkerLost(_how_it_ended(self._process.pid, self._process.wait()))
            with self._lock:
                self._lost = lost
            for future in self._waiting.values():
                future.set_exception(lost)


def _how_it_ended(pid: int, status: int) -> str:
    """In words, from the exit status that `subprocess` gives."""
    if status < 0:
        why = "; the machine may have run out of memory" if -status == signal.SIGKILL else ""
        return f"a loader process (pid {pid}) was killed (signal {-status}{why})"
    return f"a loader process (pid {pid}) ended with exit status {status}; it said why on standard error"
