"""What the images of a data set look like: the spread of their sizes, and a picture of some of them with their classes.

Both look at a keyed sample, taken from a few shards only, so that a large set in a bucket is not fetched whole.
"""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ssl_core import rng
from ssl_core.data.decode import DecodeError, decode, read_header
from ssl_core.data.reader import Reader
from ssl_core.errors import UserError
from ssl_core.storage.local import publish_bytes

_SHARDS = 16
_SIZES = 10_000  # images whose headers are read
_COLUMNS, _ROWS = 8, 8
_TILE, _CAPTION, _GAP = 112, 16, 8  # pixels
_PAPER, _INK, _NO_IMAGE = (255, 255, 255), (40, 40, 40), (225, 225, 225)
_QUANTILES = {"smallest": 0.0, "1 %": 0.01, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "99 %": 0.99, "largest": 1.0}


def keyed_sample(reader: Reader, count: int, *, seed: int) -> NDArray[np.int64]:
    """Up to `count` positions from at most 16 shards, in the order of their keys: int64 [samples]."""
    ends = np.cumsum(reader.manifest.shard_samples)
    shards = np.argsort(rng.key(seed, "show.shard", np.arange(len(ends))), kind="stable")[:_SHARDS]
    of_shards = np.split(np.arange(ends[-1]), ends[:-1])
    positions = np.concatenate([of_shards[shard] for shard in shards.tolist()])
    return positions[np.argsort(rng.key(seed, "show.image", positions), kind="stable")[:count]]


def size_lines(reader: Reader, *, seed: int) -> list[str]:
    """A table of widths, heights and encoded bytes at some quantiles."""
    values: list[tuple[int, int, int]] = []
    for position in keyed_sample(reader, _SIZES, seed=seed).tolist():
        data = reader.encoded(position)
        try:
            header = read_header(data)
        except DecodeError:
            continue
        values.append((header.width, header.height, len(data)))
    if not values:
        return ["  of the images looked at, none can be read"]
    quantiles = np.quantile(np.asarray(values), list(_QUANTILES.values()), axis=0, method="inverted_cdf")
    of = f"of {len(values):,} images"
    return [
        f"  {of:<24}{'width':>8}{'height':>8}{'bytes':>14}",
        *(
            f"  {name:<24}{width:>8,}{height:>8,}{size:>14,}"
            for name, (width, height, size) in zip(_QUANTILES, quantiles.astype(int).tolist(), strict=True)
        ),
    ]


def save_contact_sheet(reader: Reader, path: Path, *, seed: int) -> int:
    """Write a PNG with a keyed sample of the images, each upright and whole, its class or key below it.

    Returns:
        How many images are on it.

    Raises:
        UserError: the file cannot be written.
    """
    positions = keyed_sample(reader, _COLUMNS * _ROWS, seed=seed).tolist()
    labels = _labels(reader)
    font = ImageFont.load_default(size=11)
    rows = -(-len(positions) // _COLUMNS)
    step, row_step = _TILE + _GAP, _TILE + _CAPTION + _GAP
    sheet = Image.new("RGB", (_COLUMNS * step + _GAP, rows * row_step + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, position in enumerate(positions):
        x, y = _GAP + number % _COLUMNS * step, _GAP + number // _COLUMNS * row_step
        tile = _tile(reader, position)
        sheet.paste(tile, (x + (_TILE - tile.width) // 2, y + (_TILE - tile.height) // 2))
        draw.text((x + _TILE // 2, y + _TILE + 2), _caption(reader, labels, position, font), _INK, font, anchor="ma")
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    try:
        publish_bytes(path, stream.getvalue())
    except OSError as error:
        raise UserError(f"cannot write sheet={path} ({error.strerror or error}): name another file") from error
    return len(positions)


def _labels(reader: Reader) -> NDArray[np.int64] | None:
    return reader.labels() if reader.manifest.labelled_samples else None


def _tile(reader: Reader, position: int) -> Image.Image:
    """The image, shrunk or magnified to fit a tile; a plain tile where it does not decode."""
    try:
        image = Image.fromarray(decode(reader.encoded(position)))
    except DecodeError:
        return Image.new("RGB", (_TILE, _TILE), _NO_IMAGE)
    scale = _TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _caption(
    reader: Reader, labels: NDArray[np.int64] | None, position: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    label = -1 if labels is None else int(labels[position])
    words = reader.manifest.classes[label] if label >= 0 else reader.key(position).rpartition("/")[2]
    text = "".join(letter if letter.isprintable() else "?" for letter in words)
    while font.getlength(text) > _TILE and len(text) > 1:
        text = text.removesuffix("…")[:-1] + "…"
    return text
