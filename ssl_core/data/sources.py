"""Where images to pack come from: a folder, here or in a bucket, a CSV file, or scikit-learn's digits.

What is meant is told from what is there: a `.csv` file; a folder whose images lie in sub-folders (each is a class and
names it); a folder whose images lie in it directly (no labels). A folder with both is refused: one of the two readings
would lose labels without a word. A bucket's folder is all that lies below `s3://bucket/prefix`.
"""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
from PIL import Image

from ssl_core.data.listing import by_parts, listed_below
from ssl_core.data.tar import IMAGE_EXTENSIONS
from ssl_core.errors import UserError
from ssl_core.storage import s3
from ssl_core.storage.local import local_path
from ssl_core.storage.s3 import Folder, S3Location

_BUCKET_READERS = 32  # who reads from a bucket waits most of the time
_TOP_NUMBER = 1_000_000  # a larger whole number in a CSV's label column is a name, such as an id


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One encoded image; other processes read it as well, so it can be pickled.

    Attributes:
        name: its path in the source, without the extension; its key in the shards is made from it.
        extension: in lower case, without the dot.
        label: index into the source's classes.
        origin: where it comes from, for messages.
        read: gives its bytes; raises OSError.
        stamp: tells, without reading them, whether they are other bytes than before; raises OSError.
    """

    name: str
    extension: str
    label: int | None
    origin: str
    read: Callable[[], bytes]
    stamp: Callable[[], str] = str  # nothing to tell


class ImagesOnDemand(Sequence[SourceImage]):
    """Images that are made when they are asked for: a million names take less room than a million objects."""

    def __init__(self, count: int, make: Callable[[int], SourceImage]) -> None:
        self._numbers = range(count)
        self._make = make

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> SourceImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[SourceImage]: ...
    def __getitem__(self, index: int | slice) -> SourceImage | list[SourceImage]:
        if isinstance(index, slice):
            return [self._make(number) for number in self._numbers[index]]
        return self._make(self._numbers[index])


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images in an order that depends on their names alone.

    Attributes:
        images: the images.
        classes: names of their classes; none without labels.
        readers: how many should be read at a time, where that is more than there are cores.
    """

    images: Sequence[SourceImage]
    classes: tuple[str, ...]
    readers: int = 1


def open_source(location: str, *, labels: Literal["auto", "none"] = "auto", listings: Path | None = None) -> Source:
    """List the images of a source; none is opened.

    Args:
        location: `digits`, a CSV file with the columns `path` (relative to the file) and perhaps `label`, a folder, or
            `s3://bucket/prefix`.
        labels: `none` takes every image without a label, however the folders lie.
        listings: a folder that keeps what a bucket was found to hold, so that who continues continues with the same.

    Raises:
        UserError: nothing there, no images in it, or no telling what the folders mean.
        Resumable: the bucket does not answer well.
    """
    if s3.is_s3(location):
        return _from_bucket(S3Location.of(location), listings, flat=labels == "none")
    source = _digits() if location == "digits" else _from_path(location, local_path(location), labels)
    if labels == "none" and source.classes:
        return Source(images=[replace(image, label=None) for image in source.images], classes=())
    return source


def _from_path(location: str, path: Path, labels: Literal["auto", "none"]) -> Source:
    if path.is_file() and path.suffix.lower() == ".csv":
        return _from_csv(path)
    if path.is_file():
        raise UserError(
            f"source={location} is a file: name a folder of images or a .csv file with the columns path,label"
        )
    if not path.is_dir():
        raise UserError(f"source={location}: no such folder or .csv file")
    return _from_folder(path, flat=labels == "none")


def _from_folder(folder: Path, *, flat: bool) -> Source:
    names = sorted((path.relative_to(folder).as_posix() for path in _images_below(folder)), key=by_parts)
    if not names and any(folder.glob("*.tar")):
        raise UserError(f"{folder} has shards and no images: use index={folder}")
    classes = _classes_of(folder, names, flat=flat)

    def image(number: int) -> SourceImage:
        return _file_image(folder / names[number], names[number], classes.get(names[number].partition("/")[0]))

    return Source(images=ImagesOnDemand(len(names), image), classes=tuple(classes))


def _from_bucket(location: S3Location, listings: Path | None, *, flat: bool) -> Source:
    listing = listed_below(location, listings, wanted=_is_image)
    if not listing and any(name.endswith(".tar") for name, _ in s3.list_sizes(location)):
        raise UserError(f"{location} has shards and no images: use index={location}")
    classes = _classes_of(location, (name for name, _ in listing), flat=flat)

    def image(number: int) -> SourceImage:
        name, size = listing[number]
        return SourceImage(
            name=name.rpartition(".")[0],
            extension=_extension(name),
            label=classes.get(name.partition("/")[0]),
            origin=str(location / name),
            read=partial(_object_bytes, location / name, size),
            stamp=partial(str, size),
        )

    return Source(images=ImagesOnDemand(len(listing), image), classes=tuple(classes), readers=_BUCKET_READERS)


def _object_bytes(location: S3Location, size: int) -> bytes:
    data = s3.read_bytes(location)
    if data is None or len(data) != size:
        what = "is gone" if data is None else f"has {len(data):,} bytes instead of {size:,}"
        raise UserError(f"{location} {what} since the bucket was listed: put it back, or pack into another place")
    return data


def _classes_of(folder: Folder, names: Iterable[str], *, flat: bool) -> dict[str, int]:
    """The label of each folder that holds images; none where the images lie in `folder` itself or are wanted `flat`."""
    tops: set[str] = set()
    direct = inner = 0
    for name in names:
        top, below, _ = name.partition("/")
        if below:
            tops.add(top)
            inner += 1
        else:
            direct += 1
    if not direct + inner:
        kinds = "jpg, png, webp, bmp, ppm, tiff, gif"
        raise UserError(f"no images in {folder} or its folders: image files end in one of {kinds}")
    if direct and inner and not flat:
        raise UserError(
            f"{folder} has {direct} images of its own and {inner} in folders: move one kind away, or "
            "take all without labels by labels=none"
        )
    return {} if direct or flat else {name: label for label, name in enumerate(sorted(tops))}


def _is_image(name: str) -> bool:
    """Whether a path is an image's by its ending, and not hidden."""
    return _extension(name) in IMAGE_EXTENSIONS and not any(part[:1] == "." for part in name.split("/"))


def _images_below(folder: Path) -> Iterator[Path]:
    """Image files in a folder and all folders in it; links are followed, loops are not; hidden names are left out."""
    seen: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(where)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (Path(where, name) for name in names if name[0] != "." and _extension(name) in IMAGE_EXTENSIONS)


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def _file_image(path: Path, name: str, label: int | None) -> SourceImage:
    return SourceImage(
        name=name.rpartition(".")[0],
        extension=_extension(name),
        label=label,
        origin=str(path),
        read=path.read_bytes,
        stamp=partial(_file_stamp, path),
    )


def _file_stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _from_csv(path: Path) -> Source:
    rows = _csv_rows(path)
    texts = {text for _, text in rows if text}
    classes = _csv_classes(texts)
    number = {name: label for label, name in enumerate(classes)}
    images: list[SourceImage] = []
    for line, (name, text) in enumerate(rows, start=2):
        if _extension(name) not in IMAGE_EXTENSIONS:
            raise UserError(f"{path}, line {line}: {name!r} does not end like an image file")
        if not (path.parent / name).is_file():
            raise UserError(f"{path}, line {line}: there is no file {path.parent / name}")
        label = number[str(int(text)) if text not in number else text] if text else None
        images.append(_file_image(path.parent / name, Path(name).as_posix(), label))
    return Source(images=sorted(images, key=lambda image: (image.name, image.extension)), classes=classes)


def _csv_rows(path: Path) -> list[tuple[str, str]]:
    """(path, label) of each line; the label may be empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns = table.fieldnames or ()
            if "path" not in columns:
                raise UserError(f"{path} has no column named path: its first line must be path,label or path")
            rows = [(str(row["path"] or "").strip(), str(row.get("label") or "").strip()) for row in table]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a table: {error}") from error
    if not rows:
        raise UserError(f"{path} lists no images")
    return rows


def _csv_classes(texts: set[str]) -> tuple[str, ...]:
    """Whole numbers stay what they are, so that files packed apart agree; names are sorted."""
    if texts and all(text.isdecimal() and int(text) < _TOP_NUMBER for text in texts):
        return tuple(str(label) for label in range(max(map(int, texts)) + 1))
    return tuple(sorted(texts))


def _digits() -> Source:
    """scikit-learn's copy of the UCI handwritten digits: 1,797 grey images of 8 × 8 pixels with their labels."""
    from sklearn.datasets import load_digits  # a second to import, and only this source needs it

    digits = cast(Any, load_digits())
    images = [
        SourceImage(
            name=f"digit-{number:04d}",
            extension="png",
            label=int(label),
            origin=f"digits, number {number}",
            read=partial(_png, np.round(pixels * (255 / 16)).astype(np.uint8)),
        )
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True))
    ]
    return Source(images=images, classes=tuple(str(name) for name in digits.target_names))


def _png(pixels: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
