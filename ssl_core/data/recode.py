"""What an image is stored as: its own bytes, or smaller ones, made the same way each time.

An image that is made smaller, or encoded anew, becomes an 8-bit JPEG, upright, without EXIF and colour profile: grey
(one channel) where it was grey, else colour with 4:2:0 chroma; 16-bit samples keep their upper 8 bits. One that can be
seen through becomes an 8-bit PNG with its opacity when it is made smaller, and is never encoded anew for its own sake:
a JPEG would lose what makes it what it is. Opacity that is full everywhere is none.
"""

from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import simplejpeg

from ssl_core.data.decode import Pixels, decode, read_header
from ssl_core.errors import UserError

DEFAULT_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Recoding:
    """How images are stored.

    Attributes:
        resize: the shorter side in pixels, of images where it is more; None: no image is made smaller.
        quality: of JPEG, 1 to 100; without `resize`, every image is encoded anew; None: `DEFAULT_QUALITY`.
    """

    resize: int | None = None
    quality: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.resize is not None and self.resize < 1:
            raise UserError(f"resize={self.resize}: give the length of the shorter side in pixels")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise UserError(f"quality={self.quality}: JPEG has qualities from 1 to 100")

    @property
    def identity(self) -> dict[str, Any]:
        """What the bytes depend on besides the image."""
        if self.resize is None and self.quality is None:
            return {}
        programs = {"simplejpeg": simplejpeg.__version__, "opencv": cv2.__version__}
        return {"resize": self.resize, "quality": self.quality or DEFAULT_QUALITY} | programs


def recoded(data: bytes, extension: str, recoding: Recoding) -> tuple[bytes, str]:
    """The bytes to store of an image and their extension; raises DecodeError where it does not decode."""
    if recoding.resize is None and recoding.quality is None:
        decode(data)
        return data, extension
    pixels = decode(data, channels=read_header(data).channels)
    if pixels.shape[2] == 4 and int(pixels[..., 3].min()) == 255:
        pixels = pixels[..., :3]
    smaller = _made_smaller(pixels, recoding.resize)
    if smaller is pixels and (recoding.resize is not None or pixels.shape[2] == 4):
        return data, extension
    if smaller.shape[2] == 4:
        return cv2.imencode(".png", cv2.cvtColor(smaller, cv2.COLOR_RGBA2BGRA))[1].tobytes(), "png"
    return _jpeg(smaller, recoding.quality or DEFAULT_QUALITY), "jpg"


def _made_smaller(pixels: Pixels, side: int | None) -> Pixels:
    """The image with a shorter side of at most `side`, by area; the same object where it has that already."""
    height, width, channels = pixels.shape
    if side is None or min(height, width) <= side:
        return pixels
    scale = side / min(height, width)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    if channels != 4:
        return cast(Pixels, cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)).reshape(*size[::-1], channels)
    opacity = pixels[..., 3:] / np.float32(255)  # a pixel nobody sees has no say in the colour of its neighbours
    colours = cv2.resize(pixels[..., :3] * opacity, size, interpolation=cv2.INTER_AREA)
    opacity = cv2.resize(opacity, size, interpolation=cv2.INTER_AREA)[..., None]
    seen = np.concatenate([colours / np.maximum(opacity, 1e-6), opacity * 255], axis=2)
    return np.clip(np.rint(seen), 0, 255).astype(np.uint8)


def _jpeg(pixels: Pixels, quality: int) -> bytes:
    space, chroma = ("GRAY", "Gray") if pixels.shape[2] == 1 else ("RGB", "420")
    encode = cast(Any, simplejpeg).encode_jpeg
    return bytes(encode(np.ascontiguousarray(pixels), quality=quality, colorspace=space, colorsubsampling=chroma))
