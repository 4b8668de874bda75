"""What shards hold, taken in one after the other, so that a shard need not stay once it was seen.

Each shard is scanned by itself (members, headers, labels, checksum); then, in the order of the shards, those of its
images are decoded whose keys are among the smallest so far. At the end these are the smallest of all: the statistics
are the same as if the whole data set had been there at once.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_core import rng
from ssl_core.data.decode import DecodeError, read_header
from ssl_core.data.manifest import Manifest, ShardInfo, Statistics
from ssl_core.data.reader import Reader
from ssl_core.data.tar import index_shard, map_shard, read_labels
from ssl_core.storage.local import sha256_file

STATISTICS_IMAGES = 2000
_GRID_PIXELS = 128 * 128
_DIGITS = 4  # statistics are rounded, so that a decoder's last bit does not make another data set
_LUMA = np.asarray((0.299, 0.587, 0.114))  # ITU-R BT.601, as JPEG has it
_NO_STATISTICS = Statistics(mean=(0.0,), deviation=(1.0,), grey_mean=0.0, grey_deviation=1.0)

Moments = list[list[float]]
"""Mean and mean of squares of red, green, blue and grey: [4][2]."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a person should know about the shards, beside the manifest."""

    ignored: dict[str, int]  # extension → members that are neither image nor label
    repeated: tuple[str, ...]  # "shard: key" that came again; what came first stands
    unreadable: tuple[str, ...]  # "shard: key: reason", by the images' headers
    without_image: int  # labels that have no image


@dataclass(frozen=True, kw_only=True)
class ShardScan:
    """What one shard holds.

    Attributes:
        info: its line in the manifest.
        widths: smallest and largest, in pixels; empty where no header can be read.
        heights: the same.
        channels: the most that any image has.
        labelled: how many samples have a label.
        top_label: the largest, -1 without any.
        findings: what is odd about it.
        moments: of the images that were decoded for the statistics, by their number in the shard.
    """

    info: ShardInfo
    widths: tuple[int, ...]
    heights: tuple[int, ...]
    channels: int
    labelled: int
    top_label: int
    findings: Findings
    moments: Mapping[int, Moments]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ShardScan":
        """The scan that `dataclasses.asdict` and JSON made these values of."""
        found = values["findings"]
        return cls(
            info=ShardInfo(**values["info"]),
            widths=tuple(values["widths"]),
            heights=tuple(values["heights"]),
            channels=values["channels"],
            labelled=values["labelled"],
            top_label=values["top_label"],
            findings=Findings(
                ignored=found["ignored"],
                repeated=tuple(found["repeated"]),
                unreadable=tuple(found["unreadable"]),
                without_image=found["without_image"],
            ),
            moments={int(number): moments for number, moments in values["moments"].items()},
        )


def scan_shard(path: Path, name: str, *, sha256: Callable[[Path], str] = sha256_file) -> ShardScan:
    """Read one shard; no image is decoded.

    Args:
        path: where its bytes lie.
        name: what it is called.
        sha256: hashes the file.

    Raises:
        UserError: `ssl_core.data.tar` refuses the shard.
    """
    buffer = map_shard(path)
    index = index_shard(buffer, name)
    labels = read_labels(buffer, index, name)
    widths: list[int] = []
    heights: list[int] = []
    unreadable: list[str] = []
    channels = 1
    for key, offset, size in zip(index.keys, index.image_offsets.tolist(), index.image_sizes.tolist(), strict=True):
        try:
            header = read_header(buffer[offset : offset + size])
        except DecodeError as error:
            unreadable.append(f"{name}: {key}: {error}")
            continue
        widths.append(header.width)
        heights.append(header.height)
        channels = max(channels, header.channels)
    return ShardScan(
        info=ShardInfo(name=name, samples=len(index.keys), bytes=len(buffer), sha256=sha256(path)),
        widths=(min(widths), max(widths)) if widths else (),
        heights=(min(heights), max(heights)) if heights else (),
        channels=channels,
        labelled=int((labels >= 0).sum()),
        top_label=int(labels.max(initial=-1)),
        findings=Findings(
            ignored=dict(index.ignored),
            repeated=tuple(f"{name}: {key}" for key in index.repeated),
            unreadable=tuple(unreadable),
            without_image=index.without_image,
        ),
        moments={},
    )


class Survey:
    """What is known of a data set after some of its shards, in order.

    Args:
        images: how many make the statistics: those with the smallest keys.
    """

    def __init__(self, *, images: int = STATISTICS_IMAGES) -> None:
        self.scans: list[ShardScan] = []
        self._images = images
        self._samples = 0
        self._moments: dict[int, Moments] = {}  # by position

    def take_in(self, scan: ShardScan, path: Path) -> ShardScan:
        """Look at the next shard, while its bytes are there; the scan with its moments, as `remember` takes it."""
        wanted = [position - self._samples for position in self._chosen(scan.info.samples) if position >= self._samples]
        if wanted and scan.widths:
            root = str(path.parent)
            reader = Reader(_bare_manifest(root, [scan]), fetch=lambda shard: path)
            scan = replace(scan, moments={number: _moments(reader.image(number)) for number in wanted})
        self.remember(scan)
        return scan

    def remember(self, scan: ShardScan) -> None:
        """Count a shard that was taken in before."""
        self._moments |= {self._samples + number: moments for number, moments in scan.moments.items()}
        self._samples += scan.info.samples
        self._moments = {position: self._moments[position] for position in self._chosen() if position in self._moments}
        self.scans.append(scan)

    def _chosen(self, more: int = 0) -> list[int]:
        """The positions with the smallest keys, in order, among those kept and so many that come next."""
        positions = np.asarray([*self._moments, *range(self._samples, self._samples + more)], dtype=np.int64)
        order = np.argsort(rng.key(0, "manifest.statistics", positions), kind="stable")
        return np.sort(positions[order[: self._images]]).tolist()

    def findings(self) -> Findings:
        """What is odd about all of them."""
        parts = [scan.findings for scan in self.scans]
        ignored: Counter[str] = Counter()
        for part in parts:
            ignored.update(part.ignored)
        return Findings(
            ignored=dict(sorted(ignored.items())),
            repeated=tuple(line for part in parts for line in part.repeated),
            unreadable=tuple(line for part in parts for line in part.unreadable),
            without_image=sum(part.without_image for part in parts),
        )

    def manifest(self, root: str, classes: Sequence[str]) -> Manifest:
        """The manifest of these shards; one of them at least has a readable image."""
        manifest = replace(_bare_manifest(root, self.scans), classes=tuple(classes))
        sums = np.mean([self._moments[position] for position in sorted(self._moments)], axis=0)
        mean = np.round(sums[:, 0], _DIGITS).tolist()
        deviation = np.round(np.sqrt(np.maximum(sums[:, 1] - sums[:, 0] ** 2, 0.0)), _DIGITS).tolist()
        colours = slice(3, 4) if manifest.channels == 1 else slice(0, 3)
        statistics = Statistics(
            mean=tuple(mean[colours]),
            deviation=tuple(deviation[colours]),
            grey_mean=mean[3],
            grey_deviation=deviation[3],
        )
        return replace(manifest, statistics=statistics)


def _bare_manifest(root: str, scans: Sequence[ShardScan]) -> Manifest:
    """All but the classes and the statistics."""
    widths = [width for scan in scans for width in scan.widths]
    heights = [height for scan in scans for height in scan.heights]
    return Manifest(
        root=root,
        classes=(),
        shards=tuple(scan.info for scan in scans),
        labelled_samples=sum(scan.labelled for scan in scans),
        channels=max(scan.channels for scan in scans),
        width=(min(widths), max(widths)),
        height=(min(heights), max(heights)),
        statistics=_NO_STATISTICS,
    )


def _moments(image: NDArray[np.uint8]) -> Moments:
    """Over a grid of at most `_GRID_PIXELS`."""
    stride = math.ceil(math.sqrt(image.shape[0] * image.shape[1] / _GRID_PIXELS))
    pixels = image[::stride, ::stride].reshape(-1, 3) / 255.0
    pixels = np.column_stack([pixels, pixels @ _LUMA])
    return np.stack([pixels.mean(axis=0), (pixels**2).mean(axis=0)], axis=1).tolist()
