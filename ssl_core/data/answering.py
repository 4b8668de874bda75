"""A process that does tasks and answers each, from the inside; from the other side: `ssl_core.data.fresh_interpreter`.

It reads what it works on and then its tasks from standard input, writes short answers into a pipe, and is gone as soon
as standard input ends, be that because who started it closes it or because that one is dead.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from threading import Lock
from typing import Any, Protocol

import cv2


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is to be done, and its number."""

    number: int
    work: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A task is done, or went wrong.

    Attributes:
        number: the task's.
        value: what was asked for.
        news: what this process has found besides, which is heard before anybody gets the value.
        error: what went wrong.
    """

    number: int
    value: Any
    news: Any
    error: BaseException | None


class Doer(Protocol):
    """Does the tasks, several at a time."""

    @property
    def threads(self) -> int:
        """How many tasks at a time."""
        ...

    def do(self, work: Any) -> Any:
        """Do a task; what it gives back, or raises, is the answer."""
        ...

    def news(self) -> Any:
        """What the next answer tells besides; None: nothing. Not called by two threads at a time."""
        ...


class _Answering:
    def __init__(self, doer: Doer, answers: Connection) -> None:
        self._doer, self._answers = doer, answers
        self._lock = Lock()

    def answer(self, task: Task) -> None:
        value, error = None, None
        try:
            value = self._doer.do(task.work)
        except BaseException as failure:  # noqa: BLE001 (raised again where the answer is read)
            error = _sendable(failure)
        with self._lock:  # who is answered next has heard what this answer tells
            self._answers.send(Answer(number=task.number, value=value, news=self._doer.news(), error=error))


def _sendable(error: BaseException) -> BaseException:
    """The error as another process can read it, with the traceback of this one as a note."""
    error.add_note(f"In process {os.getpid()}:\n{''.join(traceback.format_exception(error))}")
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))  # pyright: ignore[reportAttributeAccessIssue] (its stub says otherwise)
    except Exception:  # noqa: BLE001 (what an exception class takes and keeps is its own affair)
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def answer_tasks(begin: Callable[..., Doer]) -> None:
    """Work until standard input ends.

    Args:
        begin: makes the doer of the first message and the command line's descriptors after that of the answers.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # what ends its starter in good order must not end it first
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
    answers, *passed = (int(word) for word in sys.argv[1:])
    tasks = Connection(sys.stdin.fileno(), writable=False)
    try:
        doer = begin(tasks.recv(), *passed)
        answering = _Answering(doer, Connection(answers, readable=False))
        pool = ThreadPoolExecutor(doer.threads)
        while True:
            pool.submit(answering.answer, tasks.recv())
    except (EOFError, OSError):  # the pipe was closed, or who wrote into it died, perhaps while it did
        os._exit(0)
