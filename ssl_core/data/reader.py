"""Samples by position: memory-mapped shards, walked once, then each sample is a slice.

A *position* is a sample's index in manifest order: the first shard's samples in tar order, then the second's, and so
on; in a data set of several manifests, these follow each other.
"""

import time
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.data_set import DataSet
from ssl_core.data.decode import MAX_PIXELS, DecodeError, Pixels, check_channels, decode
from ssl_core.data.integrity import Shards, shards_of
from ssl_core.data.manifest import Manifest, ShardInfo
from ssl_core.data.quarantine import Quarantine
from ssl_core.data.tar import Shard, ShardIndex, index_shard, map_shard, read_labels
from ssl_core.errors import Resumable, UserError
from ssl_core.storage.cache import CacheConfig
from ssl_core.storage.s3 import is_s3

_STAYS_SECONDS = 60.0  # what was just fetched is in the cache for so long
_LOOKS = 8  # at a shard that other processes put out of the cache as soon as it is there


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """A shard and where it lies."""

    info: ShardInfo
    root: str
    fetch: Shards

    @property
    def in_bucket(self) -> bool:
        return is_s3(self.root)


@dataclass(frozen=True, slots=True)
class _OpenShard:
    """A mapped shard; the map closes when the last one who reads from it lets go."""

    buffer: Shard
    index: ShardIndex
    offsets: list[int]
    ends: list[int]


class Reader:
    """Reads a data set; safe to use from several threads.

    Args:
        manifest: the data set.
        channels: what images are decoded to: 1, 3 or 4.
        max_bad: see `Quarantine`.
        verify: compare each shard with its checksum when it is first opened.
        max_pixels: larger images count as unreadable.
        max_open_shards: how many shards stay mapped.
        cache: where the shards of a bucket are kept.
        fetch: gives a local path that holds a shard's verified bytes; default: the shard where its manifest says.

    Attributes:
        quarantine: the samples that did not decode.
    """

    def __init__(
        self,
        manifest: Manifest | DataSet,
        *,
        channels: int = 3,
        max_bad: float | int | None = None,
        verify: bool = True,
        max_pixels: int = MAX_PIXELS,
        max_open_shards: int = 256,
        cache: CacheConfig | None = None,
        fetch: Shards | None = None,
    ) -> None:
        check_channels(channels)
        self.manifest = manifest
        self.channels = channels
        self._settings = {
            "channels": channels,
            "max_bad": max_bad,
            "verify": verify,
            "max_pixels": max_pixels,
            "max_open_shards": max_open_shards,
            "cache": cache,
            "fetch": fetch,
        }
        self.quarantine = Quarantine(manifest.num_samples, max_bad=max_bad)
        self._shards = [
            _Place(info=info, root=part.root, fetch=fetch or shards)
            for part in (manifest.parts if isinstance(manifest, DataSet) else (manifest,))
            for shards in [shards_of(part, verify=verify, cache=cache)]
            for info in part.shards
        ]
        self._max_pixels = max_pixels
        self._max_open_shards = max_open_shards
        # what made room in the cache stays on the disk while it is mapped: as much again at most
        self._max_open_bytes = (cache or CacheConfig()).max_bytes
        self._starts = [0, *accumulate(shard.info.samples for shard in self._shards)]
        self._ends = np.asarray(self._starts[1:], dtype=np.int64)
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._fetched: dict[int, float] = {}  # when, by the monotonic clock
        self._lock = Lock()
        self._opening = [Lock() for _ in self._shards]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, it says how to read: another process opens shards for itself, and knows which samples are bad."""
        return _reopened, (self.manifest, self._settings, self.quarantine.snapshot())

    @property
    def num_samples(self) -> int:
        """Samples in the data set."""
        return self._starts[-1]

    def image(self, position: int) -> Pixels:
        """The image that a position shows: uint8 [height, width, channels].

        Where the sample does not decode, its position goes into quarantine and shows the next readable sample of its
        shard; after the last one comes the first.

        Raises:
            Resumable: the shard's bytes are not what the manifest says.
            UserError: no sample of the shard decodes.
        """
        number, first = self._locate(position)
        shard = self._shard(number)
        info = self._shards[number].info
        for step in range(info.samples):
            sample = (position - first + step) % info.samples
            if first + sample in self.quarantine:
                continue
            try:
                data = shard.buffer[shard.offsets[sample] : shard.ends[sample]]
                return decode(data, channels=self.channels, max_pixels=self._max_pixels)
            except DecodeError as error:
                reason = f"{info.name}, key {shard.index.keys[sample]}: {error}"
                self.quarantine.add(first + sample, reason)
        raise UserError(
            f"shard {info.name} in {self._shards[number].root}: none of its {info.samples:,} samples decodes: "
            "pack the data again"
        )

    def prepare(self, positions: NDArray[np.int64]) -> None:
        """Fetch from a bucket what samples of coming steps will need.

        What is open already, or was fetched a moment ago for others that open it (loader processes), is not looked at.
        """
        for number in np.unique(np.searchsorted(self._ends, positions, side="right")).tolist():
            shard, fresh_since = self._shards[number], time.monotonic() - _STAYS_SECONDS
            if shard.in_bucket and number not in self._open and self._fetched.get(number, -inf) < fresh_since:
                shard.fetch(shard.info)
                self._fetched[number] = time.monotonic()

    def encoded(self, position: int) -> bytes:
        """The bytes of a position's own image, as they lie in the shard."""
        number, first = self._locate(position)
        shard = self._shard(number)
        return shard.buffer[shard.offsets[position - first] : shard.ends[position - first]]

    def key(self, position: int) -> str:
        """A position's key in its shard."""
        number, first = self._locate(position)
        return self._shard(number).index.keys[position - first]

    def labels(self) -> NDArray[np.int64]:
        """The labels of all samples, int64 [samples], by position; -1 where there is none."""
        if not self.manifest.labelled_samples:
            return np.full(self.num_samples, -1, dtype=np.int64)
        opened = ((shard.info.name, self._shard(number)) for number, shard in enumerate(self._shards))
        return np.concatenate([read_labels(shard.buffer, shard.index, name) for name, shard in opened])

    def _locate(self, position: int) -> tuple[int, int]:
        """The shard of a position, and the position of that shard's first sample."""
        if not 0 <= position < self._starts[-1]:
            raise IndexError(f"position {position} of {self._starts[-1]}")
        number = bisect_right(self._starts, position) - 1
        return number, self._starts[number]

    def _shard(self, number: int) -> _OpenShard:
        with self._lock:
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
                return shard
        with self._opening[number]:  # one thread hashes and walks, the others wait for it and not for other shards
            shard = self._open.get(number) or _mapped(self._shards[number])
            self._fetched.pop(number, None)
            with self._lock:
                self._open[number] = shard
                self._let_go()
        return shard

    def _let_go(self) -> None:
        """Close what was used longest ago: too many shards, or too many bytes of a bucket's."""
        while len(self._open) > self._max_open_shards:
            self._open.popitem(last=False)
        fetched = [number for number in self._open if self._shards[number].in_bucket]
        open_bytes = sum(self._shards[number].info.bytes for number in fetched)
        for number in fetched[:-1]:
            if open_bytes <= self._max_open_bytes:
                break
            open_bytes -= self._shards[number].info.bytes
            del self._open[number]


def _reopened(manifest: Manifest | DataSet, settings: dict[str, Any], bad: dict[int, str]) -> Reader:
    reader = Reader(manifest, **settings)
    reader.quarantine.restore(bad)
    return reader


def _mapped(place: _Place) -> _OpenShard:
    info = place.info
    buffer = _buffer(place)
    index = index_shard(buffer, info.name)
    if len(index.keys) != info.samples:
        raise UserError(
            f"shard {info.name} in {place.root} has {len(index.keys)} samples, its manifest says "
            f"{info.samples}: run python -m pipelines.pack index={place.root}"
        )
    offsets = index.image_offsets
    return _OpenShard(buffer, index, offsets.tolist(), (offsets + index.image_sizes).tolist())


def _buffer(place: _Place) -> Shard:
    for _ in range(_LOOKS):
        try:
            return map_shard(place.fetch(place.info))
        except FileNotFoundError:  # made room for another shard since
            continue
    raise Resumable(
        f"shard {place.info.name} of {place.root} was put out of the cache {_LOOKS} times before it could be "
        "opened: raise data.cache_gb"
    )
