"""From shards that exist to their manifest: hash, walk, look at every image's header, decode some for the statistics.

Shards of other tools are taken as they are; nothing is rewritten.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_core import rng
from ssl_core.data.decode import DecodeError, read_header
from ssl_core.data.manifest import Manifest, ShardInfo, Statistics
from ssl_core.data.reader import Reader
from ssl_core.data.tar import index_shard, map_shard, read_labels
from ssl_core.errors import UserError
from ssl_core.storage.local import stamped_sha256

CLASSES_NAME = "classes.txt"
STATISTICS_IMAGES = 2000
_GRID_PIXELS = 128 * 128
_DIGITS = 4  # statistics are rounded, so that a decoder's last bit does not make another data set
_LUMA = np.asarray((0.299, 0.587, 0.114))  # ITU-R BT.601, as JPEG has it


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a person should know about the shards, beside the manifest."""

    ignored: dict[str, int]  # extension → members that are neither image nor label
    repeated: tuple[str, ...]  # "shard: key" that came again; what came first stands
    unreadable: tuple[str, ...]  # "shard: key: reason", by the images' headers
    without_image: int  # labels that have no image


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """What one shard holds."""

    info: ShardInfo
    widths: list[int]
    heights: list[int]
    channels: int
    labelled: int
    top_label: int
    findings: Findings


def index_folder(
    folder: Path,
    *,
    classes: Sequence[str] | None = None,
    threads: int | None = None,
    done: Callable[[int, int], None] = lambda shards, of: None,
) -> tuple[Manifest, Findings]:
    """Make the manifest of the shards in a folder, in the order of their names; nothing is written.

    Args:
        folder: where the `.tar` files lie.
        classes: class names; default: the lines of `classes.txt` in the folder or the one above, else the numbers.
        threads: how many shards are read at a time.
        done: called with (shards done, shards) as the work goes on.

    Raises:
        UserError: no shards, a shard that `ssl_core.data.tar` refuses, no readable image, labels without a class.
    """
    paths = _shards_in(folder)
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        scans: list[_Scan] = []
        for scan in pool.map(_scan, paths):
            scans.append(scan)
            done(len(scans), len(paths))
    findings = _joined([scan.findings for scan in scans])
    widths = [width for scan in scans for width in scan.widths]
    heights = [height for scan in scans for height in scan.heights]
    if not widths:
        seen = ", ".join(sorted(findings.ignored)) or "none"
        first = (
            f", the first being {findings.unreadable[0]}"
            if findings.unreadable
            else f" (other extensions in them: {seen})"
        )
        raise UserError(f"no readable image in the {len(paths)} shards of {folder}{first}")
    manifest = Manifest(
        root=str(folder),
        classes=_class_names(folder, classes, max(scan.top_label for scan in scans)),
        shards=tuple(scan.info for scan in scans),
        labelled_samples=sum(scan.labelled for scan in scans),
        channels=max(scan.channels for scan in scans),
        width=(min(widths), max(widths)),
        height=(min(heights), max(heights)),
        statistics=Statistics(mean=(0.0,), deviation=(1.0,), grey_mean=0.0, grey_deviation=1.0),
    )
    return replace(manifest, statistics=measure(manifest)), findings


def measure(manifest: Manifest, *, images: int = STATISTICS_IMAGES) -> Statistics:
    """Mean and deviation of pixels in [0, 1], over the `images` samples with the smallest keys."""
    reader = Reader(manifest, verify=False)
    order = np.argsort(rng.key(0, "manifest.statistics", np.arange(reader.num_samples)), kind="stable")
    moments = [_moments(reader.image(position)) for position in np.sort(order[:images]).tolist()]
    sums = np.mean(moments, axis=0)  # [red, green, blue, grey] × [mean, mean of squares]
    mean = np.round(sums[:, 0], _DIGITS).tolist()
    deviation = np.round(np.sqrt(np.maximum(sums[:, 1] - sums[:, 0] ** 2, 0.0)), _DIGITS).tolist()
    colours = slice(3, 4) if manifest.channels == 1 else slice(0, 3)
    return Statistics(
        mean=tuple(mean[colours]), deviation=tuple(deviation[colours]), grey_mean=mean[3], grey_deviation=deviation[3]
    )


def _moments(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean and mean of squares of red, green, blue and grey, over a grid of at most `_GRID_PIXELS`: float64 [4, 2]."""
    stride = math.ceil(math.sqrt(image.shape[0] * image.shape[1] / _GRID_PIXELS))
    pixels = image[::stride, ::stride].reshape(-1, 3) / 255.0
    pixels = np.column_stack([pixels, pixels @ _LUMA])
    return np.stack([pixels.mean(axis=0), (pixels**2).mean(axis=0)], axis=1)


def _shards_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    paths = sorted(
        path for path in folder.iterdir() if path.suffix == ".tar" and path.is_file() and path.name[0] != "."
    )
    if not paths:
        inner = sorted({path.parent.name for path in folder.glob("*/*.tar")})
        hint = (
            f"its folders {', '.join(inner[:4])} do: index each"
            if inner
            else "pack source=<images> makes some from images"
        )
        raise UserError(f"{folder} has no .tar shards: {hint}")
    return paths


def _scan(path: Path) -> _Scan:
    """Read one shard."""
    buffer = map_shard(path)
    index = index_shard(buffer, path.name)
    labels = read_labels(buffer, index, path.name)
    widths: list[int] = []
    heights: list[int] = []
    unreadable: list[str] = []
    channels = 1
    for key, offset, size in zip(index.keys, index.image_offsets.tolist(), index.image_sizes.tolist(), strict=True):
        try:
            header = read_header(buffer[offset : offset + size])
        except DecodeError as error:
            unreadable.append(f"{path.name}: {key}: {error}")
            continue
        widths.append(header.width)
        heights.append(header.height)
        channels = max(channels, header.channels)
    return _Scan(
        info=ShardInfo(name=path.name, samples=len(index.keys), bytes=len(buffer), sha256=stamped_sha256(path)),
        widths=[min(widths), max(widths)] if widths else [],
        heights=[min(heights), max(heights)] if heights else [],
        channels=channels,
        labelled=int((labels >= 0).sum()),
        top_label=int(labels.max(initial=-1)),
        findings=Findings(
            ignored=dict(index.ignored),
            repeated=tuple(f"{path.name}: {key}" for key in index.repeated),
            unreadable=tuple(unreadable),
            without_image=index.without_image,
        ),
    )


def _joined(parts: Sequence[Findings]) -> Findings:
    ignored: Counter[str] = Counter()
    for part in parts:
        ignored.update(part.ignored)
    return Findings(
        ignored=dict(sorted(ignored.items())),
        repeated=tuple(line for part in parts for line in part.repeated),
        unreadable=tuple(line for part in parts for line in part.unreadable),
        without_image=sum(part.without_image for part in parts),
    )


def _class_names(folder: Path, named: Sequence[str] | None, top_label: int) -> tuple[str, ...]:
    """Names for labels 0 … top_label; none where there are no labels."""
    if top_label < 0:
        return ()
    origin = "classes"
    if named is None:
        for path in (folder / CLASSES_NAME, folder.absolute().parent / CLASSES_NAME):
            if path.is_file():
                named, origin = (
                    [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()],
                    str(path),
                )
                break
        else:
            named = [str(label) for label in range(top_label + 1)]
    if top_label >= len(named):
        raise UserError(
            f"{folder} has the label {top_label}, but {origin} names {len(named)} classes: labels count from 0"
        )
    return tuple(named)
