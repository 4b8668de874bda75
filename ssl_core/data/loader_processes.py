"""Loader processes, from the trainer's side: they fill the views of coming batches into shared memory.

From the inside: `ssl_core.data.loader_process`.
"""

from collections.abc import Mapping
from itertools import cycle

import numpy as np

from ssl_core.data.fresh_interpreter import FreshInterpreter
from ssl_core.data.lane_views import Making, parts_of
from ssl_core.data.loader_process import Filling, Work
from ssl_core.data.shared_slots import SharedSlots


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
        self._processes: list[FreshInterpreter[Filling, None]] = []
        try:
            for _ in range(processes):
                process = FreshInterpreter[Filling, None](
                    "ssl_core.data.loader_process", name="loader process", passed=(self._slots.file,), hear=self._hear
                )
                self._processes.append(process)
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
        fillings = [Filling(slot=slot, samples=samples) for samples in parts]
        return Making(
            groups=self._work.groups(memory), parts=[next(self._next).submit(filling) for filling in fillings]
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
