"""Where images to pack come from: a folder of class folders, a flat folder, a CSV file, or scikit-learn's digits.

What is meant is told from what is there: a `.csv` file; a folder whose images lie in sub-folders (each is a class and
names it); a folder whose images lie in it directly (no labels). A folder with both is refused: one of the two readings
would lose labels without a word.
"""

import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image

from ssl_core.data.tar import IMAGE_EXTENSIONS
from ssl_core.errors import UserError
from ssl_core.storage.local import local_path

_TOP_NUMBER = 1_000_000  # a larger whole number in a CSV's label column is a name, such as an id


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """One encoded image.

    Attributes:
        name: its path in the source, without the extension; its key in the shards is made from it.
        extension: in lower case, without the dot.
        label: index into the source's classes.
        origin: where it comes from, for messages.
        read: gives its bytes; raises OSError.
    """

    name: str
    extension: str
    label: int | None
    origin: str
    read: Callable[[], bytes]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images in an order that depends on their names alone, and the names of their classes (none without labels)."""

    images: Sequence[SourceImage]
    classes: tuple[str, ...]


def open_source(location: str, *, labels: Literal["auto", "none"] = "auto") -> Source:
    """List the images of a source; none is opened.

    Args:
        location: `digits`, a CSV file with the columns `path` (relative to the file) and perhaps `label`, or a folder.
        labels: `none` takes every image without a label, however the folders lie.

    Raises:
        UserError: nothing there, no images in it, or no telling what the folders mean.
    """
    source = _digits() if location == "digits" else _from_path(location, local_path(location), labels)
    if labels == "none":
        return Source(images=[_without_label(image) for image in source.images], classes=())
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


def _without_label(image: SourceImage) -> SourceImage:
    return SourceImage(name=image.name, extension=image.extension, label=None, origin=image.origin, read=image.read)


def _from_folder(folder: Path, *, flat: bool) -> Source:
    files = sorted(path.relative_to(folder) for path in _images_below(folder))
    if not files:
        if any(folder.glob("*.tar")):
            raise UserError(f"{folder} has shards and no images: use index={folder}")
        kinds = "jpg, png, webp, bmp, ppm, tiff, gif"
        raise UserError(f"no images in {folder} or its folders: image files end in one of {kinds}")
    direct = sum(len(file.parts) == 1 for file in files)
    if direct and direct < len(files) and not flat:
        raise UserError(
            f"{folder} has {direct} images of its own and {len(files) - direct} in folders: move one kind away, or "
            "take all without labels by labels=none"
        )
    classes = () if direct or flat else tuple(sorted({file.parts[0] for file in files}))
    number = {name: label for label, name in enumerate(classes)}
    images = [_file_image(folder / file, file, number[file.parts[0]] if classes else None) for file in files]
    return Source(images=images, classes=classes)


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


def _file_image(path: Path, name: Path, label: int | None) -> SourceImage:
    return SourceImage(
        name=name.with_suffix("").as_posix(),
        extension=_extension(path.name),
        label=label,
        origin=str(path),
        read=path.read_bytes,
    )


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
        images.append(_file_image(path.parent / name, Path(name), label))
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
