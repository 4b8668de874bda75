"""Encoded image bytes become pixels: uint8 [height, width, channels], upright, of the number of channels asked for.

JPEG goes through simplejpeg (libjpeg-turbo), plain 8-bit PNG through OpenCV, all else, and whatever these two do not
take, through Pillow. What the bytes are is told from the bytes, never from a name.

* The size is bounded before anything is decoded.
* EXIF orientation is applied. The first frame of an animation is the image.
* Transparent pixels are laid over white, unless four channels are asked for.
* 16-bit samples keep their upper 8 bits; 32-bit and floating-point samples are refused.
* CMYK becomes RGB without a colour profile.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from ssl_core.errors import UserError

Pixels = NDArray[np.uint8]

MAX_PIXELS = 64 * 1024 * 1024
CHANNELS = (1, 3, 4)

_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")
_ORIENTATION_TAG = 0x0112
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MARKERS_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PLAIN_PNG_CHUNKS = frozenset((b"IDAT", b"IEND", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tIME"))
_LONGEST_PNG_SIDE = 1_000_000  # libpng's own bound


class DecodeError(ValueError):
    """These bytes are no image that can be shown; reading them again will not help."""


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """What an image says of itself: its size in pixels once upright, and 1 (grey), 3 or 4 (with opacity) channels."""

    width: int
    height: int
    channels: int


@dataclass(frozen=True, slots=True)
class _JpegFrame:
    width: int
    height: int
    components: int
    orientation: int


@dataclass(frozen=True, slots=True)
class _PlainPng:
    header: ImageHeader
    stream: list[memoryview]  # compressed rows, as they lie in the IDAT chunks


def check_channels(channels: int) -> None:
    """Refuse a number of channels that image files cannot give."""
    if channels not in CHANNELS:
        raise UserError(
            f"model.in_chans={channels}: image files give 1 (grey), 3 (colour) or 4 (colour and opacity) channels, "
            "so choose one of these"
        )


def decode(data: bytes, *, channels: int = 3, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode one image.

    Args:
        data: the encoded image.
        channels: 1 (grey), 3 (RGB) or 4 (RGB and opacity).
        max_pixels: larger images are refused before they are decoded.

    Returns:
        uint8 [height, width, channels], contiguous.

    Raises:
        DecodeError: the bytes are no complete image of a known kind, or it is too large.
    """
    pixels = None
    if channels != 4:
        if data[:2] == b"\xff\xd8":
            pixels = _decode_jpeg(data, channels, max_pixels)
        elif data[:8] == _PNG_SIGNATURE:
            pixels = _decode_plain_png(data, channels, max_pixels)
    return _decode_with_pillow(data, channels, max_pixels) if pixels is None else pixels


def read_header(data: bytes) -> ImageHeader:
    """What the image says of itself, without decoding it; raises DecodeError where that cannot be told."""
    if data[:2] == b"\xff\xd8" and (frame := _scan_jpeg(data)) is not None:
        size = (frame.height, frame.width) if frame.orientation >= 5 else (frame.width, frame.height)
        return ImageHeader(width=size[0], height=size[1], channels=1 if frame.components == 1 else 3)
    if (png := _scan_plain_png(data)) is not None:
        return png.header
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
            width, height = image.size
            if isinstance(image, TiffImageFile):  # whose `size` is turned or not, depending on Pillow's version
                width, height = int(image.tag_v2[IMAGEWIDTH]), int(image.tag_v2[IMAGELENGTH])
            if _orientation(image) >= 5:
                width, height = height, width
            channels = 4 if _is_transparent(image) else 1 if _is_grey(image) else 3
            return ImageHeader(width=width, height=height, channels=channels)
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise whatever the plugin's parser stumbles over
        raise DecodeError(_said(error)) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(f"{width} x {height} pixels are more than the bound of {max_pixels:,}")


def _decode_jpeg(data: bytes, channels: int, max_pixels: int) -> Pixels | None:
    """The pixels, or None where Pillow must judge (odd markers, damage)."""
    frame = _scan_jpeg(data)
    if frame is None:
        return None
    _check_size(frame.width, frame.height, max_pixels)
    try:
        pixels = cast(Pixels, cast(Any, simplejpeg).decode_jpeg(data, "GRAY" if channels == 1 else "RGB"))
    except ValueError:
        return None
    return pixels if frame.orientation == 1 else _turned_upright(pixels, frame.orientation)


def _scan_jpeg(data: bytes) -> _JpegFrame | None:
    """Walk the segments to the frame header (ITU T.81, B.2); None where they are not as they should be."""
    offset, orientation = 2, 1
    try:
        while True:
            marker = data[offset + 1]
            if data[offset] != 0xFF:
                return None
            if marker == 0xFF:  # fill byte
                offset += 1
                continue
            if marker in _MARKERS_WITHOUT_LENGTH:  # what follows would be taken for a length, and the wrong frame found
                return None
            length = (data[offset + 2] << 8) | data[offset + 3]
            if marker in _FRAME_MARKERS:
                height, width, components = struct.unpack_from(">HHB", data, offset + 5)
                return _JpegFrame(width, height, components, orientation) if width and height else None
            if length < 2 or marker == 0xDA:
                return None
            if marker == 0xE1 and data[offset + 4 : offset + 10] == b"Exif\0\0":
                orientation = _exif_orientation(data[offset + 10 : offset + 2 + length])
            offset += 2 + length
    except (IndexError, struct.error):
        return None


def _exif_orientation(tiff: bytes) -> int:
    """The orientation in an EXIF block's first directory; 1 (upright) where there is none or it is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
            if tag == _ORIENTATION_TAG:
                return value if kind == 3 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _turned_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation (EXIF 2.32, tag 274)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _scan_plain_png(data: bytes) -> _PlainPng | None:
    """An undamaged PNG that OpenCV reads as Pillow does: 8-bit grey or RGB, not interlaced, nothing that turns it."""
    if data[:8] != _PNG_SIGNATURE or data[8:16] != b"\0\0\0\x0dIHDR":
        return None
    view, offset, kind, stream = memoryview(data), 8, b"", list[memoryview]()
    try:
        width, height, depth, colour, *methods = struct.unpack_from(">IIBBBBB", data, 16)
        if depth != 8 or colour not in (0, 2) or any(methods):
            return None
        while kind != b"IEND":
            (length,) = struct.unpack_from(">I", data, offset)
            kind = data[offset + 4 : offset + 8]
            (checksum,) = struct.unpack_from(">I", data, offset + 8 + length)
            allowed = _PLAIN_PNG_CHUNKS if offset > 8 else (b"IHDR",)
            if kind not in allowed or zlib.crc32(view[offset + 4 : offset + 8 + length]) != checksum:
                return None
            if kind == b"IDAT":
                stream.append(view[offset + 8 : offset + 8 + length])
            offset += 12 + length
    except struct.error:
        return None
    if not (0 < width <= _LONGEST_PNG_SIDE and 0 < height <= _LONGEST_PNG_SIDE):
        return None
    return _PlainPng(ImageHeader(width=width, height=height, channels=1 if colour == 0 else 3), stream)


def _decode_plain_png(data: bytes, channels: int, max_pixels: int) -> Pixels | None:
    """The pixels, or None where Pillow must judge."""
    png = _scan_plain_png(data)
    if png is None:
        return None
    header = png.header
    _check_size(header.width, header.height, max_pixels)
    if not _is_whole(png):
        return None
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    pixels = cast(Pixels | None, cv2.imdecode(np.frombuffer(data, np.uint8), flag))
    return None if pixels is None else pixels.reshape(header.height, header.width, channels)


def _is_whole(png: _PlainPng) -> bool:
    """Whether the compressed stream can be read and holds a filter byte and the samples of every row, and no more.

    Raises:
        DecodeError: rows are missing; OpenCV and Pillow would make them up.
    """
    expected = png.header.height * (1 + png.header.width * png.header.channels)
    stream = zlib.decompressobj()
    try:
        found = len(stream.decompress(b"".join(png.stream), expected + 1))
    except zlib.error:
        return False
    if stream.eof and found < expected:
        raise DecodeError(f"its rows end after {found:,} of {expected:,} bytes")
    return found == expected


def _decode_with_pillow(data: bytes, channels: int, max_pixels: int) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
            _check_size(image.width, image.height, max_pixels)
            image.load()
            upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
            pixels = np.asarray(_converted(upright, channels))
    except (DecodeError, MemoryError):
        raise
    except Exception as error:  # damaged files raise whatever the plugin's parser stumbles over
        raise DecodeError(_said(error)) from error
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], channels), dtype=np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001  damaged metadata raises anything and is no reason to lose the pixels
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _is_transparent(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA")


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I") or image.mode.startswith("I;16")


def _converted(image: Image.Image, channels: int) -> Image.Image:
    """A Pillow image in mode L, RGB or RGBA."""
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert(mode)
    if image.mode in ("I", "F"):
        raise DecodeError("its samples are 32-bit or floating-point numbers: convert it to 8 or 16 bits")
    if channels != 4 and _is_transparent(image):
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert(mode)
    return image.convert(mode)


def _said(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image of a known kind"
    return " ".join(str(error).split()) or type(error).__name__
