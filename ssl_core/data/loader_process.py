"""A loader process, from the inside; what it is told and what it says.

It reads what it works on and then its tasks from standard input, writes views into shared memory and short answers
into a pipe, and is gone as soon as standard input ends, be that because the trainer closes it or because it is dead.
"""

import os
import signal
import sys
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from threading import Lock
from typing import Protocol, runtime_checkable

import cv2
import numpy as np

from ssl_core.data.lane_views import Images, Recipe, Samples, fill, shapes
from ssl_core.data.quarantine import Quarantine
from ssl_core.data.shared_slots import SlotsElsewhere


@runtime_checkable
class ImagesElsewhere(Images, Protocol):
    """Images that another process reads as well: pickled, they say how. `ssl_core.data.reader.Reader` does."""

    @property
    def quarantine(self) -> Quarantine:
        """The samples that did not decode."""
        ...


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a loader process works on."""

    images: ImagesElsewhere
    recipe: Recipe
    seed: int
    num_lanes: int
    lane_size: int
    threads: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """A batch's view groups."""
        return shapes(self.recipe, num_lanes=self.num_lanes, lane_size=self.lane_size)

    @property
    def batch_bytes(self) -> int:
        """Bytes of a batch's views."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def groups(self, memory: np.ndarray) -> dict[str, np.ndarray]:
        """A batch's views in memory of `batch_bytes`, one group after the other."""
        found: dict[str, np.ndarray] = {}
        for name, shape in self.shapes.items():
            size = int(np.prod(shape))
            found[name], memory = memory[:size].reshape(shape), memory[size:]
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Some samples of a batch, and the slot that it is made in."""

    number: int
    slot: int
    samples: Samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A task is done, or went wrong; and which samples this process found that do not decode, with the reasons."""

    number: int
    found: Mapping[int, str]
    error: BaseException | None


class _Process:
    """Does tasks in threads and answers each."""

    def __init__(self, work: Work, slots: SlotsElsewhere, answers: Connection) -> None:
        self._work, self._slots, self._answers = work, slots, answers
        self._answering = Lock()

    def do(self, task: Task) -> None:
        """Fill in a task's views, and answer."""
        work, error = self._work, None
        try:
            groups = work.groups(self._slots.memory(task.slot))
            fill(groups, task.samples, images=work.images, recipe=work.recipe, seed=work.seed)
        except BaseException as failure:  # noqa: BLE001 (raised again in the trainer)
            error = _sendable(failure)
        quarantine = work.images.quarantine
        with self._answering:  # who is answered next has heard what this answer found
            found = quarantine.merge(quarantine.snapshot()) if quarantine.num_found else {}
            self._answers.send(Answer(number=task.number, found=found, error=error))


def _sendable(error: BaseException) -> BaseException:
    """The error as the trainer can read it, with the traceback of this process as a note."""
    error.add_note(f"In loader process {os.getpid()}:\n{''.join(traceback.format_exception(error))}")
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))  # pyright: ignore[reportAttributeAccessIssue] (its stub says otherwise)
    except Exception:  # noqa: BLE001 (what an exception class takes and keeps is its own affair)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def main() -> None:
    """Work until standard input ends; the command line has the descriptors of the answers and of the slots."""
    for number in (signal.SIGINT, signal.SIGTERM):  # what ends the trainer in good order must not end its loader first
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    answers, slots = (int(word) for word in sys.argv[1:])
    tasks = Connection(sys.stdin.fileno(), writable=False)
    try:
        work: Work = tasks.recv()
        process = _Process(work, SlotsElsewhere(slots, work.batch_bytes), Connection(answers, readable=False))
        pool = ThreadPoolExecutor(work.threads)
        while True:
            pool.submit(process.do, tasks.recv())
    except (EOFError, OSError):  # the trainer closed the pipe, or died, perhaps while it wrote into it
        os._exit(0)
