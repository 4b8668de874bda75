"""Images are looked at ahead of who writes them and come in their order: by threads, or by processes with threads.

The decoders release the interpreter's lock, the Python around them does not, nor does Pillow for much of its work: from
some four cores on, threads wait for each other. Processes do not, but an image costs its way through a pipe and a
process its start (figures: docs/architecture.md).
"""

import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol

from ssl_core.data.fresh_interpreter import FreshInterpreter
from ssl_core.data.looking import Chosen, Looked, Looker
from ssl_core.errors import Resumable, WorkerLost

_ENOUGH_CORES, _ENOUGH_IMAGES = 4, 2000  # for processes to be worth it
_PER_WORKER = 2  # tasks that it has or that wait for it
_AHEAD = 256  # images, about, of all tasks
_MOST_AT_ONCE = 16  # images of a task


def processes_for(workers: int, *, num_images: int) -> int:
    """How many processes should look at images; 0: this one's threads do it."""
    processes = min(workers, os.cpu_count() or 1)
    return processes if processes >= _ENOUGH_CORES and num_images >= _ENOUGH_IMAGES else 0


def looked_at(
    chosen: Iterable[Chosen], looker: Looker, *, processes: int, most_at_once: int = _MOST_AT_ONCE
) -> Generator[Looked]:
    """In order, what was made of each image.

    Args:
        chosen: the images.
        looker: looks at them.
        processes: in how many processes; 0: in this one.
        most_at_once: images that are looked at before the first of them is given, at most.

    Raises:
        UserError: an image cannot be read.
        Resumable: a process was killed.
    """
    tasks = _PER_WORKER * looker.threads * max(1, processes)
    size = min(most_at_once, max(1, _AHEAD // tasks), _MOST_AT_ONCE)
    remaining = iter(chosen)
    following = list(islice(remaining, size))
    if not following:
        return
    waiting: deque[Future[list[Looked]]] = deque()
    pool: _Pool = _Processes(looker, processes) if processes else _Threads(looker)
    try:
        while following or waiting:
            while following and len(waiting) < tasks:
                waiting.append(pool.submit(following))
                following = list(islice(remaining, size))
            yield from waiting.popleft().result()
    except WorkerLost as lost:
        raise Resumable(f"{lost}: the same command continues") from lost
    finally:
        pool.close()


class _Pool(Protocol):
    def submit(self, images: Sequence[Chosen]) -> "Future[list[Looked]]": ...

    def close(self) -> None: ...


class _Threads:
    def __init__(self, looker: Looker) -> None:
        self._looker = looker
        self._pool = ThreadPoolExecutor(looker.threads, thread_name_prefix="read")

    def submit(self, images: Sequence[Chosen]) -> Future[list[Looked]]:
        return self._pool.submit(self._looker.do, images)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class _Processes:
    def __init__(self, looker: Looker, processes: int) -> None:
        self._processes: list[FreshInterpreter[Sequence[Chosen], list[Looked]]] = []
        try:
            for _ in range(processes):
                self._processes.append(FreshInterpreter("ssl_core.data.looking", name="packing process"))
            for process in self._processes:  # which have been starting meanwhile, all at the same time
                process.send(looker)
        except BaseException:
            self.close()
            raise

    def submit(self, images: Sequence[Chosen]) -> Future[list[Looked]]:
        return min(self._processes, key=lambda process: process.num_waiting).submit(images)

    def close(self) -> None:
        for process in self._processes:
            process.end()
        for process in self._processes:
            process.join()
