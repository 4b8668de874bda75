"""Memory for batches that several processes write and one reads, which nothing has to clean up.

It is a file without a name: the kernel frees it when the last process that has it open or mapped is gone, however it
went. On Linux it is a memfd, which the size of /dev/shm (64 MB in many containers) does not limit.
"""

import mmap
import os
import sys
import tempfile
import weakref

import numpy as np


def nameless_file() -> int:
    """The descriptor of an empty file in memory (elsewhere than on Linux: on disk); exec closes it."""
    if sys.platform == "linux":
        return os.memfd_create("lane-batches")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class SharedSlots:
    """As many pieces of shared memory, all of one size, as are in use at a time.

    A slot is taken again once nobody holds its memory any more: the array that was given, a view of it, or a tensor on
    it. So what a slot's owner still looks at is never overwritten, and who holds many batches pays for them in memory.

    Attributes:
        file: descriptor of the file; other processes find a slot in it by its number.
    """

    def __init__(self, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        self.file = nameless_file()
        self._maps: list[mmap.mmap] = []
        self._free: list[int] = []

    @property
    def count(self) -> int:
        """How many slots there are: the most that were in use at a time."""
        return len(self._maps)

    def take(self) -> tuple[int, np.ndarray]:
        """A slot that nobody uses: its number, and its memory as uint8 [slot_bytes]."""
        if not self._free:
            os.ftruncate(self.file, (self.count + 1) * _in_file(self._slot_bytes))
            self._free.append(self.count)
            self._maps.append(_mapped(self.file, self.count, self._slot_bytes))
        number = self._free.pop()
        memory = np.frombuffer(self._maps[number], np.uint8)
        # NumPy makes this very array the base of all its views, at any depth, and a tensor holds its array
        weakref.finalize(memory, self._free.append, number).atexit = False
        return number, memory

    def close(self) -> None:
        """Let go of the file; arrays that are still held keep their memory."""
        os.close(self.file)


class SlotsElsewhere:
    """The slots of another process, by their numbers."""

    def __init__(self, file: int, slot_bytes: int) -> None:
        self._file, self._slot_bytes = file, slot_bytes
        self._memory: dict[int, np.ndarray] = {}

    def memory(self, number: int) -> np.ndarray:
        """uint8 [slot_bytes]."""
        if number not in self._memory:
            self._memory[number] = np.frombuffer(_mapped(self._file, number, self._slot_bytes), np.uint8)
        return self._memory[number]


def _in_file(slot_bytes: int) -> int:
    """What a slot takes of the file: maps begin at whole pages."""
    return -(-slot_bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY


def _mapped(file: int, number: int, slot_bytes: int) -> mmap.mmap:
    return mmap.mmap(file, slot_bytes, offset=number * _in_file(slot_bytes))
