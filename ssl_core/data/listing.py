"""What lies below a prefix of a bucket, listed once into a file and read from there: a line a name, not an object.

The order is that of a local folder (by the parts of the paths), so that the same images give the same shards wherever
they lie.
"""

import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import overload

from ssl_core.data.tar import map_shard
from ssl_core.storage import s3
from ssl_core.storage.local import atomic_path
from ssl_core.storage.s3 import S3Location

Entry = tuple[str, int]
"""A name below the location, and how many bytes it has."""


def by_parts(name: str) -> str:
    """Sorts paths as their parts sort: `a/b` before `a-b/c`."""
    return name.replace("/", "\0")


class Listing(Sequence[Entry]):
    """The entries of a listing file, read when they are asked for; the file may be removed meanwhile."""

    def __init__(self, path: Path) -> None:
        self._lines = map_shard(path)
        self._starts = array("q", [0])
        with path.open("rb") as file:
            for line in file:
                self._starts.append(self._starts[-1] + len(line))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        number = range(len(self))[index]
        if isinstance(number, range):
            return [self[one] for one in number]
        name, size = json.loads(self._lines[self._starts[number] : self._starts[number + 1]])
        return name, size


def listed_below(location: S3Location, folder: Path | None, *, wanted: Callable[[str], bool]) -> Listing:
    """List what lies below a location, or find what was listed before.

    Args:
        location: where to look.
        folder: keeps the listing; None: it is gone when nobody reads it any more.
        wanted: which names are listed.

    Raises:
        UserError: no such bucket, or no permission.
        Resumable: the bucket does not answer well.
    """
    if folder is None:
        with TemporaryDirectory() as passing:
            return listed_below(location, Path(passing), wanted=wanted)
    path = folder / f"listing-{sha256(str(location).encode()).hexdigest()[:16]}.jsonl"
    if not path.is_file():
        with atomic_path(path) as temporary:
            _write(temporary, (entry for entry in s3.list_sizes(location) if wanted(entry[0])))
    return Listing(path)


def _write(path: Path, entries: Iterable[Entry]) -> None:
    last, in_order = "", True  # a bucket sorts by whole names: nearly always the same
    with path.open("w", encoding="ascii") as file:
        for entry in entries:
            file.write(f"{json.dumps(entry)}\n")
            in_order, last = in_order and last <= by_parts(entry[0]), by_parts(entry[0])
    if not in_order:
        lines = path.read_text(encoding="ascii").splitlines(keepends=True)
        path.write_text("".join(sorted(lines, key=lambda line: by_parts(json.loads(line)[0]))), encoding="ascii")
