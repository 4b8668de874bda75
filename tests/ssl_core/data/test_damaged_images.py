"""2,000 damaged and odd images in shards, by the road of a run: what decodes is right, what does not is named.

Nothing here may crash or hang; a hang ends by pytest's own time limit (`faulthandler_timeout`).
"""

import hashlib
import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_core.data.decode import MAX_PIXELS, Pixels
from ssl_core.data.indexing import index_folder
from ssl_core.data.loader import LaneLoader, Schedule
from ssl_core.data.reader import Reader
from ssl_core.lanes import Lanes

SHARDS, SHARD_SAMPLES = 20, 100
HEIGHT, WIDTH = 18, 26
MakeTar = Callable[..., bytes]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image file, and what it must show: `truth` up to `tolerance`, or nothing."""

    what: str
    data: bytes
    truth: Pixels | None = None
    tolerance: int = 0
    extension: str = "jpg"


def saved(pixels: Pixels | Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(stream, kind, **options)
    return stream.getvalue()


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> Pixels:
    """A smooth colour image, each number another: uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 4 + number * 7, y * 5 + number * 3, (x + y) * 2 + number * 11], -1).astype(np.uint8) // 2 + 40


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


WAYS: dict[str, dict[str, Any]] = {
    "baseline": {"kind": "JPEG", "quality": 95},
    "progressive": {"kind": "JPEG", "quality": 95, "progressive": True},
    "png": {"kind": "PNG"},
    "webp": {"kind": "WEBP", "quality": 95},
    "lossless webp": {"kind": "WEBP", "lossless": True},
    "gif": {"kind": "GIF"},
    "tiff": {"kind": "TIFF"},
    "tiff lzw": {"kind": "TIFF", "compression": "tiff_lzw"},
    "bmp": {"kind": "BMP"},
    "ppm": {"kind": "PPM"},
}


def judged(what: str, data: bytes) -> Case:
    """A damaged file: shown exactly where Pillow, libjpeg-turbo's and libpng's other user, shows it."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")) as image:
            if image.width * image.height > MAX_PIXELS:
                return Case(what=what, data=data)
            return Case(what=what, data=data, truth=np.asarray(image.convert("RGB")), tolerance=3)
    except Exception:  # noqa: BLE001  whatever a plugin stumbles over, it does not show the image
        return Case(what=what, data=data)


def flipped(rng: np.random.Generator, number: int) -> Case:
    """One to five bits of a file are another."""
    way = list(WAYS)[number % len(WAYS)]
    data = bytearray(saved(picture(number), **WAYS[way]))
    for place in rng.integers(0, len(data), rng.integers(1, 6)):
        data[place] ^= 1 << rng.integers(8)
    return judged(f"bits flipped in {way}", bytes(data))


def cut(rng: np.random.Generator, number: int) -> Case:
    """A file ends early."""
    way = list(WAYS)[number % len(WAYS)]
    data = saved(picture(number), **WAYS[way])
    return judged(f"{way} cut", data[: rng.integers(len(data))])


def zeroed(rng: np.random.Generator, number: int) -> Case:
    """A stretch of a file is zero bytes, or all of it, or there is none."""
    if number % 5 == 0:
        return Case(what="zero bytes", data=bytes(number % 3 * 700))
    data = bytearray(saved(picture(number), **WAYS[list(WAYS)[number % len(WAYS)]]))
    start = int(rng.integers(len(data)))
    stretch = min(int(rng.integers(1, 600)), len(data) - start)
    data[start : start + stretch] = bytes(stretch)
    return judged("a stretch of zero bytes", bytes(data))


def spliced(rng: np.random.Generator, number: int) -> Case:
    """The beginning of one file and the end of another, as a disk that mixes its blocks leaves them."""
    one, other = (saved(picture(number + n), **WAYS[list(WAYS)[(number * 3 + n) % len(WAYS)]]) for n in (0, 1))
    place = int(rng.integers(1, min(len(one), len(other))))
    return judged("two files in one", one[:place] + other[place:])


def text(rng: np.random.Generator, number: int) -> Case:
    """A page of an error that was saved as an image, with and without JPEG's first bytes."""
    page = b"<html><head><title>404 Not Found</title></head></html>\n" * (1 + number % 30)
    return Case(what="text", data=(b"\xff\xd8\xff\xe0" if number % 2 else b"") + page)


def misnamed(rng: np.random.Generator, number: int) -> Case:
    """The extension of another kind; also bytes after the end, which all readers leave alone."""
    way = ("png", "lossless webp", "bmp", "ppm", "tiff")[number % 5]
    data = saved(picture(number), **WAYS[way]) + (b"more" * 9 if number % 2 and way == "png" else b"")
    wrong = ("jpg", "png", "webp")[number % 3]
    return Case(what=f"{way} named .{wrong}", data=data, truth=picture(number), extension=wrong)


def bomb(rng: np.random.Generator, number: int) -> Case:
    """A few hundred bytes that announce 0.9 to 4 thousand million pixels."""
    side = 30_000 + number
    if number % 4 == 0:
        return Case(what="png bomb", data=png(side, side, bytes(100_000)))
    if number % 4 == 1:
        data = bytearray(saved(picture(number), "JPEG"))
        frame = data.index(b"\xff\xc0") + 5
        data[frame : frame + 4] = struct.pack(">HH", side, side)
        return Case(what="jpeg bomb", data=bytes(data))
    if number % 4 == 2:
        data = bytearray(saved(picture(number), "BMP"))
        data[18:26] = struct.pack("<ii", side, side)
        return Case(what="bmp bomb", data=bytes(data))
    data = bytearray(saved(picture(number), "GIF"))
    data[6:10] = struct.pack("<HH", side, side)
    return Case(what="gif bomb", data=bytes(data))


def too_few_rows(rng: np.random.Generator, number: int) -> Case:
    """A PNG whose chunks are whole and whose compressed stream ends well, some rows early."""
    rows = b"".join(b"\0" + row.tobytes() for row in picture(number)[: number % HEIGHT])
    return Case(what="png of too few rows", data=png(WIDTH, HEIGHT, rows))


def hidden_frame(rng: np.random.Generator, number: int) -> Case:
    """A JPEG of 90 million pixels that shows a walk over its segments a small frame inside a comment."""
    decoy = bytes.fromhex("ffc0 0011 08 0010 0010 03 012200 021101 031101")
    comment = bytearray(b"\xff\xfe" + struct.pack(">H", 65_000) + bytes(64_998))
    rest = bytearray(bytes(comment) * 2)
    place = 0xFFFE + 2 - 2  # where the marker after the parameterless one leads, if its code is taken for a length
    rest[place : place + len(decoy)] = decoy
    large = bytearray(saved(picture(number), "JPEG"))
    frame = large.index(b"\xff\xc0") + 5
    large[frame : frame + 4] = struct.pack(">HH", 9_000 + number, 10_000)
    return Case(what="jpeg with a hidden frame", data=b"\xff\xd8\xff\x01" + bytes(rest) + bytes(large[2:]))


def animated(rng: np.random.Generator, number: int) -> Case:
    """The first frame is the image."""
    colour = (number * 5 % 256, number * 11 % 256, 90)
    frames = [Image.new("RGB", (9, 7), one) for one in (colour, (0, 0, 0), (255, 255, 255))]
    kind = ("GIF", "WEBP", "PNG")[number % 3]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=40, **options)
    return Case(what=f"animated {kind}", data=data, truth=np.full((7, 9, 3), colour, np.uint8))


def cmyk(rng: np.random.Generator, number: int) -> Case:
    """Inks of one colour: red = 255 − cyan, less by black."""
    inks = np.asarray([number * 3 % 200, number * 7 % 200, number * 13 % 200, 40])
    image = Image.new("CMYK", (16, 16), tuple(inks.tolist()))
    truth = np.round((255 - inks[:3]) * (255 - inks[3]) / 255).astype(np.uint8)
    data = saved(image, "JPEG", quality=100, subsampling=0)
    return Case(what="cmyk", data=data, truth=np.full((16, 16, 3), truth, np.uint8), tolerance=4)


def sixteen_bits(rng: np.random.Generator, number: int) -> Case:
    """Grey of 16 bits keeps its upper eight."""
    values = (np.arange(15 * 11).reshape(15, 11) * 397 + number * 601).astype(np.uint16)
    truth = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=-1)
    kind = ("PNG", "TIFF", "PPM")[number % 3]
    return Case(what=f"16 bits {kind}", data=saved(Image.fromarray(values), kind), truth=truth)


def one_pixel(rng: np.random.Generator, number: int) -> Case:
    """The smallest image of each kind."""
    pixels = np.full((1, 1, 3), (number % 256, 200, 90), np.uint8)
    way = WAYS[("baseline", "png", "lossless webp", "gif", "tiff", "bmp", "ppm")[number % 7]]
    return Case(what=f"one pixel {way['kind']}", data=saved(pixels, **way), truth=pixels, tolerance=4)


def turned(rng: np.random.Generator, number: int) -> Case:
    """Each EXIF orientation, and numbers that are none."""
    orientation = number % 10
    upright = picture(number)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {  # EXIF 2.32, tag 274: where the upright image's first row and first column lie in the stored one
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }.get(orientation, upright)
    way = WAYS[("baseline", "png", "lossless webp", "tiff")[number // 10 % 4]]
    options: dict[str, Any] = {**way, "quality": 100, "subsampling": 0} if way["kind"] == "JPEG" else way
    data = saved(np.ascontiguousarray(stored), exif=exif, **options)
    return Case(what=f"orientation {orientation} {way['kind']}", data=data, truth=upright, tolerance=6)


COUNTS: dict[Callable[[np.random.Generator, int], Case], int] = {
    flipped: 520,
    cut: 400,
    zeroed: 150,
    spliced: 150,
    text: 60,
    misnamed: 150,
    bomb: 60,
    too_few_rows: 40,
    hidden_frame: 10,
    animated: 90,
    cmyk: 90,
    sixteen_bits: 90,
    one_pixel: 70,
    turned: 120,
}


def cases() -> Iterator[Case]:
    """All of them, mixed, so that every shard has of each."""
    rng = np.random.default_rng(0)
    made = [make(rng, number) for make, count in COUNTS.items() for number in range(count)]
    yield from (made[place] for place in rng.permutation(len(made)).tolist())


@dataclass(frozen=True, kw_only=True)
class Digest:
    """A view that is its image's digest: uint8 [1, 1, 1, 20]."""

    name: str = "digest"
    count: int = 1
    height: int = 1
    width: int = 1
    channels: int = 20


class Fingerprints:
    """The recipe that shows which image it was given, to the last bit."""

    groups = (Digest(),)
    num_views = 1

    def draw(self, keys: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return keys

    def __call__(self, image: Pixels, numbers: np.ndarray[Any, Any]) -> list[Pixels]:
        return [fingerprint(image)]


def fingerprint(image: Pixels) -> Pixels:
    bits = hashlib.sha1(bytes(image) + str(image.shape).encode()).digest()
    return np.frombuffer(bits, np.uint8).reshape(1, 1, 1, 20)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")  # on damaged metadata
def test_of_2000_damaged_images_each_is_shown_right_or_named(tmp_path: Path, make_tar: MakeTar) -> None:
    everything = list(cases())
    assert len(everything) == SHARDS * SHARD_SAMPLES == 2000
    for shard in range(SHARDS):
        numbered = enumerate(everything[shard * SHARD_SAMPLES : (shard + 1) * SHARD_SAMPLES], shard * SHARD_SAMPLES)
        members = [(f"{position:04d}.{case.extension}", case.data) for position, case in numbered]
        (tmp_path / f"shard-{shard:05d}.tar").write_bytes(make_tar(members, form=tarfile.USTAR_FORMAT))
    manifest, findings = index_folder(tmp_path)
    assert manifest.num_samples == 2000

    reader = Reader(manifest, max_bad=2000)
    shown = [reader.image(position) for position in range(2000)]
    named = reader.quarantine.snapshot()
    wrong: list[str] = []
    for position, case in enumerate(everything):
        if case.truth is None:
            reason = named.get(position, "")
            if not reason.removeprefix(f"shard-{position // SHARD_SAMPLES:05d}.tar, key {position:04d}: "):
                wrong.append(f"{position} ({case.what}) is not named: {reason!r}")
        elif position in named:
            wrong.append(f"{position} ({case.what}) is refused: {named[position]}")
        elif shown[position].shape != case.truth.shape:
            wrong.append(f"{position} ({case.what}) is shown as {shown[position].shape}, not {case.truth.shape}")
        elif (difference := np.abs(shown[position].astype(int) - case.truth).max()) > case.tolerance:
            wrong.append(f"{position} ({case.what}) is shown {difference} off")
    assert not wrong, "\n".join(wrong)
    assert 500 < len(named) < 1500
    assert {line.split(": ")[1] for line in findings.unreadable} <= {f"{position:04d}" for position in named}

    lanes = Lanes.cut(40, 4)
    schedule = Schedule(shard_samples=manifest.shard_samples, seed=0, block=300, lanes=lanes)
    again = Reader(manifest, max_bad=2000)
    loader = LaneLoader(again, Fingerprints(), schedule, threads=3)
    seen = 0
    for batch in loader.stream(0, schedule.steps_per_epoch):
        for positions, prints in zip(batch.positions, batch.groups["digest"][:, 0, :, 0, 0], strict=True):
            for position, found in zip(positions.tolist(), prints, strict=True):
                np.testing.assert_array_equal(found, fingerprint(shown[position]).ravel())
                seen += 1
    assert seen == 2000
    assert again.quarantine.snapshot() == named
