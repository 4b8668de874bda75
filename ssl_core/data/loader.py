"""From the order to pixels: the lane batches of the coming steps, made ahead in threads.

A batch is a pure function of its step, so there is no loader state to save. JPEG decoding and OpenCV release the
interpreter lock; the threads end with the loader.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from ssl_core import rng
from ssl_core.data.order import EpochOrder, steps_per_epoch
from ssl_core.data.shares import Share, samples_an_epoch
from ssl_core.lanes import Lanes
from ssl_core.types import LaneBatch


class Images(Protocol):
    """Where pixels come from: `ssl_core.data.reader.Reader`."""

    def image(self, position: int) -> np.ndarray:
        """The image at a position: uint8 [H, W, K]."""
        ...


class Group(Protocol):
    """Views of one size."""

    @property
    def name(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def channels(self) -> int: ...


class Recipe(Protocol):
    """How a sample becomes views: `ssl_core.views.recipes`."""

    @property
    def groups(self) -> tuple[Group, ...]: ...
    @property
    def num_views(self) -> int: ...

    def __call__(self, image: np.ndarray, keys: np.ndarray) -> list[np.ndarray]:
        """uint8 [H, W, K] and int64 [num_views] to one uint8 [count, height, width, channels] a group."""
        ...


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


class LaneLoader:
    """Makes the batches of a worker's lanes.

    Args:
        images: where pixels come from; must be safe to call from several threads.
        recipe: how a sample becomes views.
        schedule: the order; its lanes say which this worker owns.
        threads: how many lanes are made at a time.
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
        ahead: int = 2,
        prepare: Callable[[np.ndarray], None] | None = None,
        prepare_ahead: int = 32,
    ) -> None:
        self._images, self._recipe, self._schedule = images, recipe, schedule
        self._threads, self._ahead = threads, ahead
        self._prepare, self._prepare_ahead = prepare, prepare_ahead
        self._num_samples = int(schedule.shard_samples.sum())
        self._epoch_order = lru_cache(maxsize=2)(schedule.epoch)

    def stream(self, first_step: int, end_step: int) -> Iterator[LaneBatch]:
        """The batches of steps first_step … end_step − 1, in order."""
        waiting: deque[tuple[LaneBatch, list[Future[None]]]] = deque()
        prepared = first_step
        with (
            ThreadPoolExecutor(self._threads, thread_name_prefix="loader") as pool,
            ThreadPoolExecutor(1, thread_name_prefix="prepare") as preparing,
        ):
            try:
                for step in range(first_step, end_step + self._ahead):
                    while self._prepare and prepared < min(step + self._prepare_ahead, end_step):
                        # an error is not looked at: it comes again with the batch
                        preparing.submit(self._prepare, self._draws(prepared) % self._num_samples)
                        prepared += 1
                    if step < end_step:
                        waiting.append(self._start(step, pool))
                    if step >= first_step + self._ahead and waiting:
                        batch, lanes = waiting.popleft()
                        for lane in lanes:
                            lane.result()
                        yield batch
            finally:
                pool.shutdown(cancel_futures=True)
                preparing.shutdown(cancel_futures=True)

    def batch(self, step: int) -> LaneBatch:
        """The batch of one step."""
        return next(self.stream(step, step + 1))

    def _start(self, step: int, pool: ThreadPoolExecutor) -> tuple[LaneBatch, list[Future[None]]]:
        lanes, draws = self._schedule.lanes, self._draws(step)
        positions = draws % self._num_samples
        groups = {
            group.name: np.empty(
                (len(positions), group.count, lanes.size, group.height, group.width, group.channels), np.uint8
            )
            for group in self._recipe.groups
        }
        epoch = step // self._schedule.steps_per_epoch
        batch = LaneBatch(step=step, epoch=epoch, positions=positions, draws=draws, groups=groups)
        return batch, [pool.submit(self._fill, batch, lane) for lane in range(len(positions))]

    def _draws(self, step: int) -> np.ndarray:
        """What own lanes see at a step: int64 [own lanes, b]."""
        epoch, step_in_epoch = divmod(step, self._schedule.steps_per_epoch)
        return self._epoch_order(epoch).draws(step_in_epoch, self._schedule.lanes.owned)

    def _fill(self, batch: LaneBatch, lane: int) -> None:
        """Decode each sample of a lane once and write all its views."""
        views = np.arange(self._recipe.num_views)
        keys = rng.key(self._schedule.seed, "views", batch.epoch, batch.draws[lane][:, None], views)
        outputs = [batch.groups[group.name][lane] for group in self._recipe.groups]
        for sample, position in enumerate(batch.positions[lane].tolist()):
            made = self._recipe(self._images.image(position), keys[sample])
            for output, group in zip(outputs, made, strict=True):
                output[:, sample] = group
