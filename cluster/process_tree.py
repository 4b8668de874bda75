"""A process with everything below it, from /proc: what runs there, and its end at one stroke."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

_WAIT_SECONDS = 20.0


def process_tree(*roots: int) -> dict[int, str]:
    """Process id and command line of these processes and all below them; those that have ended are left out."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if (parent := _parent(int(entry.name))) is not None:
            parents[int(entry.name)] = parent
    found = [root for root in dict.fromkeys(roots) if root in parents]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid and child not in found]
    return {pid: _command_line(pid) for pid in found}


def kill_tree(*roots: int) -> None:
    """End these processes and all below them as a machine ends that loses power; nobody gets to say goodbye.

    All are frozen first, so that none of them starts another one, or sees another one end.
    """
    frozen: set[int] = set()
    while new := process_tree(*roots).keys() - frozen:
        _send(signal.SIGSTOP, new)
        frozen |= new
    _send(signal.SIGKILL, frozen)
    end = time.monotonic() + _WAIT_SECONDS
    while any(_parent(pid) is not None for pid in frozen) and time.monotonic() < end:
        time.sleep(0.01)


def _send(number: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _parent(pid: int) -> int | None:
    """The parent's process id; None where the process has ended, though nobody may have asked how (a zombie)."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[:2]
    except OSError:
        return None
    return None if state in "ZX" else int(parent)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""
