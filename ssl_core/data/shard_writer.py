"""The shards of one part: images written in order, scanned and put in place when full.

Images are read and checked some ahead (`ssl_core.data.looking_ahead`). A thread of its own takes care of full shards,
in their order.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import compress, takewhile
from pathlib import Path

from ssl_core.data.looking import Chosen, Looked, Looker
from ssl_core.data.looking_ahead import looked_at
from ssl_core.data.placing import Place
from ssl_core.data.staging import FinishedShard, StagedPart, shard_name
from ssl_core.data.survey import Survey, scan_shard

_SHARDS_BEHIND = 2  # full ones that wait for their scan and their place
_LOOKS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class WrittenPart:
    """A part whose shards are all where they belong, or staged.

    Attributes:
        survey: what they hold.
        skipped: "path: reason" of the images that were left out.
        num_kept: how many shards were finished before.
    """

    survey: Survey
    skipped: tuple[str, ...]
    num_kept: int


@dataclass(frozen=True, kw_only=True)
class PartWriter:
    """Writes parts.

    Attributes:
        place: takes the shards.
        shard_samples: samples in a shard.
        looker: reads and checks images.
        processes: in how many processes it does; 0: in this one.
        advance: called with how many more images are done.
    """

    place: Place
    shard_samples: int
    looker: Looker
    processes: int
    advance: Callable[[int], None]

    def write(self, staged: StagedPart, chosen: Callable[[int], Iterable[Chosen]]) -> WrittenPart:
        """Finish a part, after the shards of it that are finished already.

        Args:
            staged: where it is made.
            chosen: gives its images in order, from so many on.
        """
        kept = self._still_there(staged)
        survey = Survey()
        for shard in kept:
            survey.remember(shard.scan)
        skipped = [line for shard in kept for line in shard.skipped]
        stop = kept[-1].stop if kept else 0
        self.advance(stop)

        def finish(shard: str, stop: int, left_out: tuple[str, ...]) -> None:
            path = staged.folder / shard
            scan = survey.take_in(scan_shard(path, shard), path)
            self.place.put(staged, scan.info)
            staged.finish(FinishedShard(stop=stop, skipped=left_out, scan=scan))

        images = looked_at(chosen(stop), self.looker, processes=self.processes, most_at_once=self.shard_samples)
        full: deque[Future[None]] = deque()
        with ThreadPoolExecutor(1) as finisher, closing(images) as looked:
            number, last = len(kept), False
            while not last:
                path = staged.folder / shard_name(number)
                samples, left_out, last = self._fill(path, looked)
                stop += samples + len(left_out)
                skipped += left_out
                if not samples:
                    path.unlink()
                    break
                full.append(finisher.submit(finish, path.name, stop, tuple(left_out)))
                if len(full) > _SHARDS_BEHIND:
                    full.popleft().result()
                number += 1
            for shard in full:
                shard.result()
        return WrittenPart(survey=survey, skipped=tuple(skipped), num_kept=len(kept))

    def _still_there(self, staged: StagedPart) -> list[FinishedShard]:
        """The finished shards up to the first that is gone."""
        finished = staged.finished()

        def is_there(shard: FinishedShard) -> bool:
            return self.place.holds(staged, shard.scan.info)

        with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
            there = list(pool.map(is_there, finished))
        return list(compress(finished, takewhile(bool, there)))

    def _fill(self, path: Path, looked: Generator[Looked]) -> tuple[int, list[str], bool]:
        """Write one shard: its samples, what was left out on the way, and whether there are no more images."""
        from webdataset.writer import TarWriter  # imports torch, which only those who write shards shall wait for

        samples, left_out = 0, list[str]()
        with path.open("wb") as file:
            with TarWriter(file, mtime=0, encoder=False) as writer:
                for one in looked:
                    self.advance(1)
                    if isinstance(one, str):
                        left_out.append(one)
                        continue
                    writer.write(one)
                    samples += 1
                    if samples == self.shard_samples:
                        break
            file.flush()
            os.fsync(file.fileno())
        return samples, left_out, samples < self.shard_samples
