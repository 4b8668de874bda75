"""Pictures of a validation set that are also in the training set: a leak, which flatters every probe.

Three steps, none of which compares all pairs: files of equal bytes are found by sorting digests; pictures that may be
the same by their 64-bit perceptual hashes, through multi-index hashing (Norouzi, Punjani and Fleet, "Fast search in
Hamming space with multi-index hashing", CVPR 2012): the bits are cut into bands, and two hashes that differ in few bits
differ in very few bits of some band, so that only those buckets are looked into; and of these, those are the same whose
thumbnails, laid over each other, correlate.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.decode import DecodeError, Pixels, decode
from ssl_core.data.fingerprints import HASH_BITS, NUM_FRAMES, likeness, mirrored, perceptual_hashes, thumbnail
from ssl_core.data.reader import Reader

MAX_DISTANCE = 11  # bits of 64
MIN_LIKENESS = 0.9

_BANDS, _BAND_BITS = 4, 16
_BAND_DISTANCE = MAX_DISTANCE // _BANDS  # in some band, the bits that differ are at most so many
_QUERIES_AT_ONCE = 4096
_IMAGES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A validation image, the training image that shows the same (the most alike, if there are several), and how."""

    val: int  # position
    train: int  # position
    kind: Literal["same bytes", "same picture", "mirror image"]
    likeness: float  # of their thumbnails, up to 1


@dataclass(frozen=True, kw_only=True)
class _Prints:
    """What is kept of a set's images."""

    digests: NDArray[np.uint64]  # [samples], of the encoded bytes
    hashes: NDArray[np.uint64]  # [frames, samples]
    shows: NDArray[np.bool_]  # [samples], whether it decodes and is not blank: only then the hashes mean something


def find_leaks(
    train: Reader,
    val: Reader,
    *,
    threads: int | None = None,
    done: Callable[[int, int], None] = lambda images, of: None,
) -> list[Leak]:
    """The validation images that the training set has too, in order of their positions.

    Images that do not decode or are blank are compared by their bytes alone. Cost: one decode of each image, and one
    more of those that are likely pairs; memory 57 bytes an image.

    Args:
        train: the set that may have too much.
        val: the set that is to be unseen.
        threads: how many images are decoded at a time.
        done: called with (images done, images).
    """
    total = train.num_samples + val.num_samples
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        in_train = _prints(train, pool, done=lambda count: done(count, total))
        in_val = _prints(val, pool, done=lambda count: done(train.num_samples + count, total))
        leaks = {leak.val: leak for leak in _same_bytes(train, val, in_train, in_val)}
        for mirror in (False, True):
            left = np.flatnonzero(in_val.shows)
            left = left[~np.isin(left, list(leaks))]
            pairs = _likely_pairs(left, in_val, in_train, mirror=mirror)
            leaks |= {leak.val: leak for leak in _alike(train, val, pairs, pool, mirror=mirror)}
    return [leaks[position] for position in sorted(leaks)]


def _own_image(reader: Reader, position: int) -> Pixels | None:
    """The image at a position itself, never what quarantine shows instead; None where it does not decode."""
    try:
        return decode(reader.encoded(position))
    except DecodeError:
        return None


def _prints(reader: Reader, pool: ThreadPoolExecutor, *, done: Callable[[int], None]) -> _Prints:
    """Fingerprint every image of a set."""
    prints = _Prints(
        digests=np.zeros(reader.num_samples, np.uint64),
        hashes=np.zeros((NUM_FRAMES, reader.num_samples), np.uint64),
        shows=np.zeros(reader.num_samples, np.bool_),
    )

    def fill(positions: range) -> int:
        for position in positions:
            digest = hashlib.blake2b(reader.encoded(position), digest_size=8).digest()
            prints.digests[position] = int.from_bytes(digest, "little")
            image = _own_image(reader, position)
            small = None if image is None else thumbnail(image)
            if small is not None:
                prints.hashes[:, position] = perceptual_hashes(small)
                prints.shows[position] = True
        return positions.stop

    for stop in pool.map(fill, _ranges(reader.num_samples, _IMAGES_AT_ONCE)):
        done(stop)
    return prints


def _ranges(total: int, length: int) -> list[range]:
    return [range(start, min(start + length, total)) for start in range(0, total, length)]


def _same_bytes(train: Reader, val: Reader, in_train: _Prints, in_val: _Prints) -> Iterator[Leak]:
    order = np.argsort(in_train.digests, kind="stable")
    place = np.searchsorted(in_train.digests, in_val.digests, sorter=order)
    found = order[np.minimum(place, len(order) - 1)]
    for position in np.flatnonzero(in_train.digests[found] == in_val.digests).tolist():
        other = int(found[position])
        if train.encoded(other) == val.encoded(position):
            yield Leak(val=position, train=other, kind="same bytes", likeness=1.0)


def _likely_pairs(left: NDArray[np.int64], in_val: _Prints, in_train: _Prints, *, mirror: bool) -> NDArray[np.int64]:
    """Positions in val (among `left`) and in train: one's whole picture is near the other's, or a part of it."""
    members = np.flatnonzero(in_train.shows)
    whole, *parts = mirrored(in_val.hashes[:, left]) if mirror else in_val.hashes[:, left]
    train_whole, *train_parts = in_train.hashes[:, members]
    searches = [
        (whole, train_whole),
        *((part, train_whole) for part in parts),
        *((whole, part) for part in train_parts),
    ]
    pairs = np.unique(np.concatenate([near_pairs(*search) for search in searches]), axis=0)
    return np.stack([left[pairs[:, 0]], members[pairs[:, 1]]], axis=1)


def near_pairs(queries: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Which hashes differ from which queries in at most `MAX_DISTANCE` bits.

    Args:
        queries: uint64 [m].
        hashes: uint64 [n].

    Returns:
        int64 [pairs, 2]: index of a query, index of a hash; each pair once, in order.
    """
    found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]  # query · n + hash, so that each pair is a number
    for band in range(_BANDS):
        keys = _band(hashes, band)
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange((1 << _BAND_BITS) + 1))
        for some in _ranges(len(queries), _QUERIES_AT_ONCE):
            wanted = queries[some.start : some.stop]
            buckets = _band(wanted, band)
            for flip in _flips():
                first, last = starts[buckets ^ flip], starts[(buckets ^ flip) + 1]
                query = np.repeat(np.arange(len(wanted)), last - first)
                within = np.arange(len(query)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
                candidate = order[first[query] + within]
                near = np.bitwise_count(wanted[query] ^ hashes[candidate]) <= MAX_DISTANCE
                found.append((query[near] + some.start) * len(hashes) + candidate[near])
    return np.stack(np.divmod(np.unique(np.concatenate(found)), max(1, len(hashes))), axis=1)


def _band(hashes: NDArray[np.uint64], band: int) -> NDArray[np.int64]:
    """Every fourth bit, from `band` on, so that each band has low and high frequencies: int64 [n]."""
    bits = (hashes[:, None] >> np.arange(band, HASH_BITS, _BANDS, dtype=np.uint64)) & np.uint64(1)
    return bits.astype(np.int64) @ (1 << np.arange(_BAND_BITS))


def _flips() -> list[int]:
    """The differences of a band that are looked for."""
    places = [1 << bit for bit in range(_BAND_BITS)]
    return [sum(some) for count in range(_BAND_DISTANCE + 1) for some in combinations(places, count)]


def _alike(
    train: Reader, val: Reader, pairs: NDArray[np.int64], pool: ThreadPoolExecutor, *, mirror: bool
) -> Iterator[Leak]:
    """Of likely pairs, the most alike of each validation image, if it is alike enough."""
    members = np.unique(pairs[:, 1]).tolist()
    thumbnails = dict(zip(members, pool.map(partial(_thumbnail, train), members), strict=True))
    queries, firsts = np.unique(pairs[:, 0], return_index=True)
    images = pool.map(partial(_thumbnail, val), queries.tolist())
    for position, image, group in zip(queries.tolist(), images, np.split(pairs[:, 1], firsts[1:]), strict=False):
        shown = np.ascontiguousarray(image[:, ::-1]) if mirror else image
        best, member = max((likeness(shown, thumbnails[member]), member) for member in group.tolist())
        if best >= MIN_LIKENESS:
            kind = "mirror image" if mirror else "same picture"
            yield Leak(val=position, train=member, kind=kind, likeness=round(best, 4))


def _thumbnail(reader: Reader, position: int) -> NDArray[np.float32]:
    small = thumbnail(decode(reader.encoded(position)))
    assert small is not None, "blank images are no candidates"
    return small
