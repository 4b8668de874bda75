"""The manifest: what a data set is, in one small JSON file that is written last.

A folder with a manifest is complete. The manifest may lie elsewhere than its shards (`root`). Its digest covers what
a run depends on (shards in order, their sizes and sha256, classes, statistics), not where they lie.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ssl_core.errors import UserError
from ssl_core.storage import s3
from ssl_core.storage.local import local_path, publish_bytes
from ssl_core.storage.s3 import Folder, S3Location

MANIFEST_NAME = "manifest.json"
FORMAT = "ssl-pipelines manifest"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard: a tar file of `samples` samples."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a data set's pixels are like, in [0, 1], over a keyed sample of its images, each image with the same weight.

    `mean` and `deviation` have three values (RGB), or one where no image has colour.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    grey_mean: float
    grey_deviation: float


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set.

    Attributes:
        root: the folder where the shards lie.
        classes: class names; a sample's label is an index into them. Empty where there are no labels.
        labelled_samples: how many samples have a label.
        channels: the most that any image has: 1 grey, 3 colour, 4 with transparency.
        width: smallest and largest, in pixels.
        height: smallest and largest, in pixels.
    """

    root: str
    classes: tuple[str, ...]
    shards: tuple[ShardInfo, ...]
    labelled_samples: int
    channels: int
    width: tuple[int, int]
    height: tuple[int, int]
    statistics: Statistics

    @property
    def num_samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def shard_samples(self) -> NDArray[np.int64]:
        """Samples of each shard: int64 [shards]."""
        return np.asarray([shard.samples for shard in self.shards], dtype=np.int64)

    @property
    def labelled(self) -> bool:
        """Whether every sample has a label."""
        return self.labelled_samples == self.num_samples

    @property
    def mean(self) -> tuple[float, ...]:
        """Channel means of pixels in [0, 1]."""
        return self.statistics.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Channel deviations of pixels in [0, 1]."""
        return self.statistics.deviation

    def normalisation(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation for images decoded to so many channels; raises UserError where they are not known."""
        if channels == 1:
            return (self.statistics.grey_mean,), (self.statistics.grey_deviation,)
        if channels == 3:
            repeats = 3 // len(self.mean)
            return self.mean * repeats, self.std * repeats
        raise UserError(f"the manifest of {self.root} has no mean and deviation for {channels} channels: name them")

    @property
    def digest(self) -> str:
        """sha256 of the content, the same wherever manifest and shards lie."""
        content = {name: value for name, value in _as_json(self).items() if name != "root"}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def save_manifest(manifest: Manifest, folder: Folder) -> Folder:
    """Write `manifest.json` into a folder, local or in a bucket, whole or not at all.

    A root beside or below a local folder, or a bucket's folder itself, is written relative to it, so that both can be
    moved together.
    """
    content = _as_json(manifest) | {"root": _root_seen_from(folder, manifest.root), "digest": manifest.digest}
    path = folder / MANIFEST_NAME
    data = (json.dumps(content, indent=1) + "\n").encode()
    if isinstance(path, Path):
        publish_bytes(path, data)
    else:
        s3.write_bytes(path, data)
    return path


def _root_seen_from(folder: Folder, root: str) -> str:
    if root == str(folder):
        return "."
    if s3.is_s3(root):
        return root
    if isinstance(folder, S3Location):
        raise UserError(f"{folder}: the shards lie in {root}, where who reads the bucket does not find them")
    relative = os.path.relpath(root, folder)
    return relative if Path(relative).parts.count("..") <= 1 else str(Path(root).absolute())


def load_manifest(location: str | Path) -> Manifest:
    """Read the manifest in a folder, local or below `s3://`.

    Args:
        location: a folder that has a `manifest.json`, or that file itself.

    Raises:
        UserError: no such folder, no manifest in it, or one that this version cannot read.
        Resumable: the bucket does not answer well.
    """
    if s3.is_s3(location):
        return _load_from_bucket(str(location))
    folder = local_path(str(location))
    if folder.name == MANIFEST_NAME and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise UserError(f"{location}: no such folder")
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise UserError(f"{location} has no {MANIFEST_NAME}: {_what_to_do(folder)}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): make it again with pack") from error
    return _parsed(content, str(folder), where=str(path))


def _load_from_bucket(location: str) -> Manifest:
    folder = s3.S3Location.of(location.removesuffix(MANIFEST_NAME))
    data = s3.read_bytes(folder / MANIFEST_NAME)
    if data is None:
        raise UserError(
            f"{folder} has no {MANIFEST_NAME}: upload a packed folder as it is, its manifest last, or name one below it"
        )
    try:
        content = json.loads(data)
    except ValueError as error:
        raise UserError(f"{folder / MANIFEST_NAME} cannot be read ({error}): upload it again") from error
    return _parsed(content, str(folder), where=str(folder / MANIFEST_NAME))


def _what_to_do(folder: Path) -> str:
    inner = sorted(entry.parent for entry in folder.glob(f"*/{MANIFEST_NAME}"))
    if inner:
        return f"name one of the data sets in it: {', '.join(str(one) for one in inner[:4])}"
    if any(folder.glob("*.tar")):
        return f"run python -m pipelines.pack index={folder}"
    return f"pack images first: python -m pipelines.pack source=<images> output={folder}"


def _as_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest as JSON values; tuples as lists, so that what is read back compares equal."""
    return {"format": FORMAT, "version": VERSION} | cast(dict[str, Any], json.loads(json.dumps(asdict(manifest))))


def _parsed(content: Any, folder: str, *, where: str) -> Manifest:
    if not isinstance(content, dict) or cast(dict[str, Any], content).get("format") != FORMAT:
        raise UserError(f"{where} is not a manifest of shards: run python -m pipelines.pack index={folder}")
    values = cast(dict[str, Any], content)
    if values.get("version") != VERSION:
        raise UserError(
            f"{where} has manifest version {values.get('version')}, this program reads version {VERSION}: "
            f"run python -m pipelines.pack index={folder}"
        )
    try:
        manifest = _from_json(values, folder)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where} is damaged ({error!r}): make it again with pack") from error
    for shard in manifest.shards:
        if Path(shard.name).is_absolute() or ".." in Path(shard.name).parts:
            raise UserError(f"{where} names a shard outside its folder: {shard.name!r}")
    if manifest.digest != values.get("digest"):
        raise UserError(f"{where} was changed by hand or damaged, its digest does not fit: make it again with pack")
    return manifest


def _root(root: str, folder: str) -> str:
    """Where the shards lie: beside the manifest, or where an absolute root says."""
    if s3.is_s3(root):
        return root
    if s3.is_s3(folder):
        inner = os.path.normpath(root)
        if Path(inner).is_absolute() or ".." in Path(inner).parts:
            raise ValueError(f"root {root!r} is not in the bucket's folder")
        return folder if inner == "." else f"{folder}/{inner}"
    return os.path.normpath(Path(folder) / root)


def _from_json(values: Mapping[str, Any], folder: str) -> Manifest:
    statistics = values["statistics"]
    return Manifest(
        root=_root(str(values["root"]), folder),
        classes=tuple(map(str, values["classes"])),
        shards=tuple(
            ShardInfo(
                name=str(one["name"]), samples=int(one["samples"]), bytes=int(one["bytes"]), sha256=str(one["sha256"])
            )
            for one in values["shards"]
        ),
        labelled_samples=int(values["labelled_samples"]),
        channels=int(values["channels"]),
        width=(int(values["width"][0]), int(values["width"][1])),
        height=(int(values["height"][0]), int(values["height"][1])),
        statistics=Statistics(
            mean=tuple(map(float, statistics["mean"])),
            deviation=tuple(map(float, statistics["deviation"])),
            grey_mean=float(statistics["grey_mean"]),
            grey_deviation=float(statistics["grey_deviation"]),
        ),
    )
