"""Where a shard's samples lie: one walk over the headers of a memory-mapped tar, then every sample is a slice.

Shards follow WebDataset's convention: a member's key is its path up to the first dot of the file name, the rest, in
lower case, is its extension. A sample is a key with an image; members of a sample need not be neighbours. POSIX ustar
and pax, GNU and old v7 headers are read (IEEE Std 1003.1, "pax"; GNU tar manual, "Basic Tar Format").

A reader that stops at the first odd header loses samples without a word. So every header's checksum is checked (for all
headers at once, in NumPy), the end-of-archive mark must be there, and nothing may follow it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_core.errors import UserError

IMAGE_EXTENSIONS = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "ppm", "pgm", "pbm", "pnm", "tif", "tiff", "gif")
)
LABEL_EXTENSION = "cls"

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_REGULAR = b"0\x007"
_KINDS = {b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"6": "a named pipe"}
_EVEN_BYTES = np.uint64(0x00FF00FF00FF00FF)
_OCTAL = 8 ** np.arange(5, -1, -1, dtype=np.int64)
_SPARSE = "GNU.sparse"  # stands for all keywords that begin so
_MOST_DIGITS = 20  # of a number of bytes
_HEADERS_AT_ONCE = 256  # what fits a core's cache

Shard = bytes | mmap


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """Where the samples of one shard lie, in the order of their images.

    Offsets and sizes are int64 [samples], in bytes from the start of the shard; a sample without a label has offset -1.
    """

    keys: list[str]
    image_offsets: NDArray[np.int64]
    image_sizes: NDArray[np.int64]
    label_offsets: NDArray[np.int64]
    label_sizes: NDArray[np.int64]
    ignored: Mapping[str, int]  # members that are neither image nor label: extension → how many
    repeated: tuple[str, ...]  # keys that came again; what came first stands
    without_image: int  # keys that have a label and no image


@dataclass(slots=True)
class _Walk:
    """What a walk over the headers has seen so far."""

    names: list[str] = field(default_factory=list[str])
    offsets: list[int] = field(default_factory=list[int])  # of the contents
    sizes: list[int] = field(default_factory=list[int])
    headers: list[int] = field(default_factory=list[int])
    pending: dict[str, bytes] = field(
        default_factory=dict[str, bytes]
    )  # said about the next member by an extended header
    standing: dict[str, bytes] = field(default_factory=dict[str, bytes])  # said about all members by a global header


class _Refused(Exception):
    """A shard that cannot be read as a whole: what is wrong, and at which byte."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(what)
        self.offset = offset


def map_shard(path: Path) -> Shard:
    """Map a shard into memory; the map closes when nobody holds it any more."""
    with path.open("rb") as file:
        return mmap(file.fileno(), 0, access=ACCESS_READ) if path.stat().st_size else b""  # nothing cannot be mapped


def index_shard(buffer: Shard, shard: str) -> ShardIndex:
    """Index one shard.

    Args:
        buffer: the whole shard; a memory map works best.
        shard: its name, for messages.

    Raises:
        UserError: an unsafe member (absolute, `..`, a link, a device), a damaged header or a missing end; it names the
            shard and the byte.
    """
    walk = _Walk()
    try:
        try:
            end = _walk(buffer, walk)
        finally:  # an earlier header may have led the walk astray: that one is to blame
            _check_headers(buffer, walk.headers)
        _check_tail(buffer, end)
    except _Refused as refusal:
        raise UserError(f"{shard}: {refusal} (at byte {refusal.offset:,}): write this shard again") from None
    return _grouped(walk)


def read_labels(buffer: Shard, index: ShardIndex, shard: str) -> NDArray[np.int64]:
    """The integer labels of a shard's samples, int64 [samples]; -1 where there is none.

    Raises:
        UserError: a label that is no integer of at least -1; it names the shard and the key.
    """
    labels = np.full(len(index.keys), -1, dtype=np.int64)
    for sample, (offset, size) in enumerate(zip(index.label_offsets.tolist(), index.label_sizes.tolist(), strict=True)):
        if offset < 0:
            continue
        text = buffer[offset : offset + size]
        try:
            labels[sample] = int(text)
        except (ValueError, OverflowError):
            labels[sample] = -2
        if labels[sample] < -1:
            raise UserError(
                f"{shard}: the label of {_shown(index.keys[sample])} is {text[:40]!r}: labels are whole numbers from 0"
            )
    return labels


def _walk(buffer: Shard, walk: _Walk) -> int:
    """Visit every header; the offset of the end-of-archive mark."""
    end, offset = len(buffer), 0
    names, offsets, sizes, headers = walk.names, walk.offsets, walk.sizes, walk.headers
    while True:
        header = buffer[offset : offset + _BLOCK]
        if len(header) < _BLOCK:
            raise _Refused(offset, "it is truncated: the end-of-archive mark is missing")
        if not header[0] and header == _ZEROS:
            if walk.pending:
                raise _Refused(offset, "an extended header has no member")
            return offset
        headers.append(offset)
        start = offset + _BLOCK
        size = _size(header, offset)
        if header[156] in _REGULAR:
            name = _name(header)
            if walk.pending or walk.standing:
                name, size = _amended(name, size, walk, offset)
            if ".." in name or name[:1] == "/":
                _check_name(name, offset)
            names.append(name)
            offsets.append(start)
            sizes.append(size)
        else:
            size = _visit_special(buffer, walk, header, size)
        if start + size > end:
            raise _Refused(end, f"it is truncated: {_shown(_name(header))} should reach byte {start + size:,}")
        offset = start + ((size + _BLOCK - 1) & -_BLOCK)


def _visit_special(buffer: Shard, walk: _Walk, header: bytes, size: int) -> int:
    """Take in a header that is no regular file; how many bytes of contents follow it."""
    offset, kind = walk.headers[-1], header[156:157]
    if kind in b"LKxg":
        body = buffer[offset + _BLOCK : offset + _BLOCK + size]
        if kind == b"L":
            walk.pending["path"] = body.rstrip(b"\0")
        elif kind == b"x":
            walk.pending |= _pax_records(body, offset)
        elif kind == b"g":
            walk.standing |= _pax_records(body, offset)
        return size
    name, _ = _amended(_name(header), size, walk, offset)
    if kind == b"5":
        _check_name(name, offset)
        return 0
    if kind == b"S":
        raise _Refused(offset, f"member {_shown(name)} is a sparse file")
    if kind in _KINDS:
        raise _Refused(offset, f"unsafe member: {_shown(name)} is {_KINDS[kind]}")
    raise _Refused(offset, f"member {_shown(name)} has the unknown type {kind!r}")


def _name(header: bytes) -> str:
    stop = header.find(0)
    name = header[:stop] if 0 <= stop < 100 else header[:100]
    if header[345] and header[257:263] == b"ustar\0":
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _size(header: bytes, offset: int) -> int:
    """The size field: octal text, or GNU's base-256 for 8 GiB and more."""
    if header[124] == 0x80:
        return int.from_bytes(header[125:136], "big")
    try:
        size = int(header[124:135] if header[135] <= 32 else header[124:136], 8)  # most writers: 11 digits and an end
    except ValueError:
        size = _octal(header[124:136])
    if size < 0:
        raise _Refused(offset, "not a tar header")
    return size


def _amended(name: str, size: int, walk: _Walk, offset: int) -> tuple[str, int]:
    """Name and size with what extended headers say about this member."""
    said = walk.standing | walk.pending
    walk.pending = {}
    if "path" in said:
        name = said["path"].decode("utf-8", "surrogateescape")
    if _SPARSE in said:
        raise _Refused(offset, f"member {_shown(name)} is a sparse file")
    if "size" in said:
        if not said["size"].isdigit() or len(said["size"]) > _MOST_DIGITS:
            raise _Refused(offset, "damaged extended header")
        size = int(said["size"])
    return name, size


def _pax_records(body: bytes, offset: int) -> dict[str, bytes]:
    """The records `length keyword=value` of an extended header that say where a member lies or what it is called."""
    records: dict[str, bytes] = {}
    start, end = 0, len(body.rstrip(b"\0"))
    while start < end:
        length = body[start : start + _MOST_DIGITS].partition(b" ")[0]
        stop = start + int(length) if length.isdigit() else start
        keyword, equals, value = body[start + len(length) + 1 : stop].partition(b"=")
        if not equals or not value.endswith(b"\n") or stop > len(body):
            raise _Refused(offset, "damaged extended header")
        if keyword in (b"path", b"size"):
            records[keyword.decode()] = value[:-1]
        elif keyword.startswith(b"GNU.sparse."):
            records[_SPARSE] = b""
        start = stop
    return records


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:60]}…{name[-30:]}")


def _check_name(name: str, offset: int) -> None:
    if name.startswith("/"):
        raise _Refused(offset, f"unsafe member: {_shown(name)} is an absolute path")
    if ".." in name.split("/"):
        raise _Refused(offset, f"unsafe member: {_shown(name)} leads out of its folder")


def _check_headers(buffer: Shard, headers: list[int]) -> None:
    """Refuse the first header whose checksum is not the sum of its bytes (its own field counted as spaces)."""
    whole = np.frombuffer(buffer, np.uint8, count=len(buffer) // _BLOCK * _BLOCK).reshape(-1, _BLOCK)
    for first in range(0, len(headers), _HEADERS_AT_ONCE):
        offsets = headers[first : first + _HEADERS_AT_ONCE]
        blocks = whole[np.asarray(offsets) // _BLOCK]
        words = blocks.view(np.uint64)  # four 16-bit lanes a word: the sum over 64 words of two bytes each fits a lane
        lanes = ((words & _EVEN_BYTES) + ((words >> np.uint64(8)) & _EVEN_BYTES)).sum(axis=1).view(np.uint16)
        fields = blocks[:, 148:156].astype(np.int64)
        found = lanes.reshape(-1, 4).sum(axis=1, dtype=np.int64) - fields.sum(axis=1) + 8 * ord(" ")
        said = (fields[:, :6] - ord("0")) @ _OCTAL  # six digits, as nearly every writer has it
        for odd in np.flatnonzero(said != found).tolist():
            if _octal(blocks[odd, 148:156].tobytes()) != found[odd]:
                raise _Refused(offsets[odd], "not a tar header: its checksum is wrong")


def _octal(field: bytes) -> int:
    """A number field as octal text; -1 where it is none."""
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        return -1


def _check_tail(buffer: Shard, end: int) -> None:
    """Nothing but zeros may follow the end-of-archive mark."""
    tail = np.frombuffer(buffer, np.uint8, offset=end)
    if tail.any():
        raise _Refused(
            end + int(tail.argmax() if tail.max() == 1 else np.flatnonzero(tail)[0]), "data follows its end mark"
        )


def _grouped(walk: _Walk) -> ShardIndex:
    """Members by key; samples in the order of their images."""
    images: dict[str, int] = {}  # key → which member
    labels: dict[str, int] = {}
    rooms = dict.fromkeys(IMAGE_EXTENSIONS, images) | {LABEL_EXTENSION: labels}
    ignored: Counter[str] = Counter()
    repeated: dict[str, None] = {}
    for member, name in enumerate(walk.names):
        key, _, extension = name.partition(".")
        room = rooms.get(extension)
        if room is None:
            if "/" in extension:  # a dot in a folder's name
                folder, _, base = name.rpartition("/")
                stem, _, extension = base.partition(".")
                key = f"{folder}/{stem}"
            extension = extension.lower()
            room = rooms.get(extension)
        if (
            room is None or not key or key[-1] == "/"
        ):  # a name that begins with a dot has no key: WebDataset skips it too
            ignored[extension] += 1
        elif key in room:
            repeated[key] = None
        else:
            room[key] = member
    offsets = np.asarray([*walk.offsets, -1], dtype=np.int64)  # the last one is what "no member" finds
    sizes = np.asarray([*walk.sizes, 0], dtype=np.int64)
    of_images = np.fromiter(images.values(), np.int64, len(images))
    of_labels = np.fromiter((labels.get(key, -1) for key in images), np.int64, len(images))
    return ShardIndex(
        keys=list(images),
        image_offsets=offsets[of_images],
        image_sizes=sizes[of_images],
        label_offsets=offsets[of_labels],
        label_sizes=sizes[of_labels],
        ignored=dict(ignored),
        repeated=tuple(repeated),
        without_image=len(labels.keys() - images.keys()),
    )
