"""From the order to pixels: the lane batches of the coming steps, made ahead in threads or in other processes.

A batch is a pure function of its step, so there is no loader state to save, and who makes it changes nothing. JPEG
decoding, OpenCV and compiled loops release the interpreter lock, the Python around them does not: threads suit a few
cores, processes many. Both end with the stream.
"""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from ssl_core.data.lane_views import Images, Makers, Making, Recipe, fill, parts_of, shapes
from ssl_core.data.loader_process import ImagesElsewhere, Work
from ssl_core.data.loader_processes import LaneProcesses
from ssl_core.data.order import EpochOrder, steps_per_epoch
from ssl_core.data.shares import Share, samples_an_epoch
from ssl_core.lanes import Lanes
from ssl_core.types import LaneBatch


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The order of a whole run: what `EpochOrder` is for an epoch."""

    shard_samples: np.ndarray  # int64 [shards]
    seed: int
    block: int
    lanes: Lanes
    shares: tuple[Share, ...] = ()  # of several data sets

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return steps_per_epoch(samples_an_epoch(self.shard_samples, self.shares), self.lanes.global_batch)

    def epoch(self, epoch: int) -> EpochOrder:
        """The order of one epoch."""
        return EpochOrder(
            self.shard_samples,
            seed=self.seed,
            epoch=epoch,
            num_lanes=self.lanes.count,
            lane_size=self.lanes.size,
            block=self.block,
            shares=self.shares,
        )


class LaneThreads:
    """Makes batches in threads of this process; see `ssl_core.data.lane_views.Makers`."""

    def __init__(self, images: Images, recipe: Recipe, *, seed: int, threads: int) -> None:
        self._recipe = recipe
        self._fill = partial(fill, images=images, recipe=recipe, seed=seed)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")

    def start(self, epoch: int, positions: np.ndarray, draws: np.ndarray) -> Making:
        """See `Makers`."""
        num_lanes, lane_size = positions.shape
        found = shapes(self._recipe, num_lanes=num_lanes, lane_size=lane_size)
        groups = {name: np.empty(shape, np.uint8) for name, shape in found.items()}
        lanes = parts_of(epoch, positions, draws)
        return Making(groups=groups, parts=[self._pool.submit(self._fill, groups, lane) for lane in lanes])

    def close(self) -> None:
        """See `Makers`."""
        self._pool.shutdown(cancel_futures=True)


class LaneLoader:
    """Makes the batches of a worker's lanes.

    Args:
        images: where pixels come from; must be safe to call from several threads. For processes, `ImagesElsewhere`.
        recipe: how a sample becomes views.
        schedule: the order; its lanes say which this worker owns.
        threads: how many lanes are made at a time, by this process or by each of `processes`.
        processes: how many other processes make the batches; 0: this one.
        ahead: batches that are made before they are asked for.
        prepare: is told positions of samples long before they are asked for, so that they can be fetched.
        prepare_ahead: how many steps before.
    """

    def __init__(
        self,
        images: Images,
        recipe: Recipe,
        schedule: Schedule,
        *,
        threads: int = 1,
        processes: int = 0,
        ahead: int = 2,
        prepare: Callable[[np.ndarray], None] | None = None,
        prepare_ahead: int = 32,
    ) -> None:
        self._images, self._recipe, self._schedule = images, recipe, schedule
        self._threads, self._processes, self._ahead = threads, processes, ahead
        self._prepare, self._prepare_ahead = prepare, prepare_ahead
        self._num_samples = int(schedule.shard_samples.sum())
        self._epoch_order = lru_cache(maxsize=2)(schedule.epoch)

    def stream(self, first_step: int, end_step: int) -> Generator[LaneBatch]:
        """The batches of steps first_step … end_step − 1, in order."""
        waiting: deque[tuple[LaneBatch, list[Future[None]]]] = deque()
        prepared = first_step
        with (
            closing(self._makers()) as makers,
            ThreadPoolExecutor(1, thread_name_prefix="prepare") as preparing,
        ):
            try:
                for step in range(first_step, end_step + self._ahead):
                    while self._prepare and prepared < min(step + self._prepare_ahead, end_step):
                        # an error is not looked at: it comes again with the batch
                        preparing.submit(self._prepare, self._draws(prepared) % self._num_samples)
                        prepared += 1
                    if step < end_step:
                        waiting.append(self._start(step, makers))
                    if step >= first_step + self._ahead and waiting:
                        batch, parts = waiting.popleft()
                        for part in parts:
                            part.result()
                        yield batch
            finally:
                preparing.shutdown(cancel_futures=True)

    def batch(self, step: int) -> LaneBatch:
        """The batch of one step."""
        return next(self.stream(step, step + 1))

    def _makers(self) -> Makers:
        images, recipe, schedule = self._images, self._recipe, self._schedule
        if not self._processes:
            return LaneThreads(images, recipe, seed=schedule.seed, threads=self._threads)
        assert isinstance(images, ImagesElsewhere), "other processes can neither read them nor say what is wrong"
        work = Work(
            images=images,
            recipe=recipe,
            seed=schedule.seed,
            num_lanes=len(schedule.lanes.owned),
            lane_size=schedule.lanes.size,
            threads=self._threads,
        )
        return LaneProcesses(work, processes=self._processes)

    def _start(self, step: int, makers: Makers) -> tuple[LaneBatch, list[Future[None]]]:
        draws, epoch = self._draws(step), step // self._schedule.steps_per_epoch
        positions = draws % self._num_samples
        making = makers.start(epoch, positions, draws)
        batch = LaneBatch(step=step, epoch=epoch, positions=positions, draws=draws, groups=making.groups)
        return batch, making.parts

    def _draws(self, step: int) -> np.ndarray:
        """What own lanes see at a step: int64 [own lanes, b]."""
        epoch, step_in_epoch = divmod(step, self._schedule.steps_per_epoch)
        return self._epoch_order(epoch).draws(step_in_epoch, self._schedule.lanes.owned)
