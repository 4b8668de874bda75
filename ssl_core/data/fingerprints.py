"""What an image looks like in 64 bits, and how alike two are: for finding the same picture in two files.

The 64 bits are the signs of the lowest frequencies of a small grey copy's cosine transform (the perceptual hash of
Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010, with signs instead of a median).
Re-encoding and resizing change few of them, cutting off a margin many: so each image also has hashes without a margin,
all around or at two sides. Mirroring an image changes the sign of every frequency that is odd in x, so its bits are
those of the image with a fixed mask: nothing is computed twice.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from ssl_core.data.decode import Pixels

HASH_BITS = 64
SIDE = 64  # of the small grey copies, in pixels
_HASHED_SIDE = 32
_FRAMES = {  # rows and columns of the small copy
    "whole": (slice(0, 64), slice(0, 64)),
    "inner": (slice(2, 62), slice(2, 62)),
    "without top left": (slice(3, 64), slice(3, 64)),
    "without top right": (slice(3, 64), slice(0, 61)),
    "without bottom left": (slice(0, 61), slice(3, 64)),
    "without bottom right": (slice(0, 61), slice(0, 61)),
}
NUM_FRAMES = len(_FRAMES)
_EDGE = 6  # of the part of a thumbnail that is looked for in another one: 52 pixels, which may cover …
_COVERED = range(47, 58)  # … so many there
_LUMA = np.asarray((0.299, 0.587, 0.114), dtype=np.float32)  # ITU-R BT.601


def _lowest_frequencies() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the 64 lowest frequencies but the mean, int64 [64] each, by their sum."""
    rows, columns = np.divmod(np.arange(_HASHED_SIDE**2), _HASHED_SIDE)
    order = np.lexsort((rows, rows + columns))[1 : HASH_BITS + 1]
    return rows[order], columns[order]


_ROWS, _COLUMNS = _lowest_frequencies()
_BIT_VALUES = np.uint64(1) << np.arange(HASH_BITS, dtype=np.uint64)
_MIRROR_MASK = np.bitwise_or.reduce(_BIT_VALUES[_COLUMNS % 2 == 1])


def thumbnail(image: Pixels) -> NDArray[np.float32] | None:
    """A small grey copy of an image uint8 [height, width, 3]: float32 [64, 64].

    None where it shows nothing: a deviation below one grey level.
    """
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) @ _LUMA
    return small if small.std() >= 1 else None


def perceptual_hashes(small: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Hashes of a thumbnail and of parts of it, the whole first: uint64 [frames]."""
    size = (_HASHED_SIDE, _HASHED_SIDE)
    frames = (cv2.resize(small[frame], size, interpolation=cv2.INTER_AREA) for frame in _FRAMES.values())
    frequencies = np.stack([cv2.dct(frame)[_ROWS, _COLUMNS] for frame in frames])
    return np.bitwise_or.reduce(np.where(frequencies > 0, _BIT_VALUES, np.uint64(0)), axis=1)


def mirrored(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The hashes of the images' mirror images (left and right exchanged), of the same shape."""
    return hashes ^ _MIRROR_MASK


def likeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The correlation of two thumbnails where they fit best: 1 for the same picture, whatever its contrast.

    The inner part of one is laid over the other, magnified or shrunk a little and moved about, so that margins that
    were cut off (up to about a tenth) do not matter.
    """
    inner = one[_EDGE : SIDE - _EDGE, _EDGE : SIDE - _EDGE]
    templates = (cv2.resize(inner, (side, side), interpolation=cv2.INTER_LINEAR) for side in _COVERED)
    return max(float(cv2.matchTemplate(other, part, cv2.TM_CCOEFF_NORMED).max()) for part in templates)
