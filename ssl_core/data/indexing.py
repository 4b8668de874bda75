"""From shards that exist to their manifest: hash, walk, look at every image's header, decode some for the statistics.

Shards of other tools are taken as they are; nothing is rewritten. Those of a bucket are fetched one after the other, a
few ahead, and are gone again when they were seen.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from ssl_core.data.manifest import Manifest
from ssl_core.data.survey import Findings, ShardScan, Survey, scan_shard
from ssl_core.errors import UserError
from ssl_core.storage import s3
from ssl_core.storage.local import stamped_sha256
from ssl_core.storage.s3 import Folder, S3Location

CLASSES_NAME = "classes.txt"
_AHEAD = 2  # shards of a bucket on disk beside the one that is looked at


def index_folder(
    folder: Folder,
    *,
    classes: Sequence[str] | None = None,
    threads: int | None = None,
    done: Callable[[int, int], None] = lambda shards, of: None,
) -> tuple[Manifest, Findings]:
    """Make the manifest of the shards in a folder, in the order of their names; nothing is written there.

    Args:
        folder: where the `.tar` files lie.
        classes: class names; default: the lines of `classes.txt` in the folder or the one above, else the numbers.
        threads: how many shards are read at a time.
        done: called with (shards done, shards) as the work goes on.

    Raises:
        UserError: no shards, a shard that `ssl_core.data.tar` refuses, no readable image, labels without a class.
        Resumable: the bucket does not answer well.
    """
    survey = Survey()
    if isinstance(folder, Path):
        paths = _shards_in(folder)
        scanned = _scanned_in_place(paths, threads)
        count = len(paths)
    else:
        listed = _shards_below(folder)
        scanned = _scanned_on_the_way(folder, listed)
        count = len(listed)
    for scan, path in scanned:
        survey.take_in(scan, path)
        done(len(survey.scans), count)
    findings = survey.findings()
    if not any(scan.widths for scan in survey.scans):
        seen = ", ".join(sorted(findings.ignored)) or "none"
        first = (
            f", the first being {findings.unreadable[0]}"
            if findings.unreadable
            else f" (other extensions in them: {seen})"
        )
        raise UserError(f"no readable image in the {count} shards of {folder}{first}")
    return survey.manifest(str(folder), class_names(folder, classes, survey)), findings


def _scanned_in_place(paths: Sequence[Path], threads: int | None) -> Iterator[tuple[ShardScan, Path]]:
    def scan(path: Path) -> ShardScan:
        return scan_shard(path, path.name, sha256=stamped_sha256)

    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        yield from zip(pool.map(scan, paths), paths, strict=True)


def _scanned_on_the_way(folder: S3Location, listed: Sequence[tuple[str, int]]) -> Iterator[tuple[ShardScan, Path]]:
    """Fetch and scan shards, a few ahead; each is removed when the next one is asked for."""
    with TemporaryDirectory() as place, ThreadPoolExecutor(_AHEAD) as pool:

        def fetch(name: str, size: int) -> ShardScan:
            path = Path(place) / name
            s3.download(folder / name, path, size=size)
            return scan_shard(path, name)

        waiting: deque[tuple[Path, Future[ShardScan]]] = deque()
        remaining = iter(listed)
        try:
            while True:
                while len(waiting) < _AHEAD and (following := next(remaining, None)) is not None:
                    waiting.append((Path(place) / following[0], pool.submit(fetch, *following)))
                if not waiting:
                    return
                path, scanning = waiting.popleft()
                yield scanning.result(), path
                path.unlink()
        finally:
            pool.shutdown(cancel_futures=True)


def _shards_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    paths = sorted(
        path for path in folder.iterdir() if path.suffix == ".tar" and path.is_file() and path.name[0] != "."
    )
    if not paths:
        inner = sorted({path.parent.name for path in folder.glob("*/*.tar")})
        raise UserError(f"{folder} has no .tar shards: {_where_else(inner)}")
    return paths


def _shards_below(folder: S3Location) -> list[tuple[str, int]]:
    """(name, bytes) of the shards directly below a location."""
    inner: set[str] = set()
    found: list[tuple[str, int]] = []
    for name, size in s3.list_sizes(folder):
        if name.endswith(".tar") and name[0] != ".":
            if "/" in name:
                inner.add(name.rpartition("/")[0])
            else:
                found.append((name, size))
    if not found:
        raise UserError(f"{folder} has no .tar shards: {_where_else(sorted(inner))}")
    return found


def _where_else(inner: Sequence[str]) -> str:
    if inner:
        return f"its folders {', '.join(inner[:4])} do: index each"
    return "pack source=<images> makes some from images"


def class_names(folder: Folder, named: Sequence[str] | None, survey: Survey) -> tuple[str, ...]:
    """Names for labels 0 … the largest; none where there are no labels."""
    top_label = max(scan.top_label for scan in survey.scans)
    if top_label < 0:
        return ()
    origin = "classes"
    if named is None:
        origin, named = _listed_classes(folder) or ("", [str(label) for label in range(top_label + 1)])
    if top_label >= len(named):
        raise UserError(
            f"{folder} has the label {top_label}, but {origin} names {len(named)} classes: labels count from 0"
        )
    return tuple(named)


def _listed_classes(folder: Folder) -> tuple[str, list[str]] | None:
    """Where names of classes are listed, and the names."""
    if isinstance(folder, Path):
        places = (folder / CLASSES_NAME, folder.absolute().parent / CLASSES_NAME)
    else:
        places = (folder / CLASSES_NAME, S3Location(folder.bucket, folder.key.rpartition("/")[0]) / CLASSES_NAME)
    for place in places:
        if isinstance(place, Path):
            data = place.read_bytes() if place.is_file() else None
        else:
            data = s3.read_bytes(place)
        if data is not None:
            return str(place), [line.strip() for line in data.decode("utf-8").splitlines() if line.strip()]
    return None
