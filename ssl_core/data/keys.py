"""The key of each image in the shards: its name in the source, safe for a tar and for WebDataset, and unique.

Only keys that would come twice are kept: a million images cost 8 MB and two walks over their names.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.sources import SourceImage


class SafeKeys:
    """Keys by an image's number in its source; of images with one key, the later ones get a number behind it."""

    def __init__(self, images: Sequence[SourceImage]) -> None:
        hashes = np.fromiter((_hash(safe_key(image.name)) for image in images), np.int64, len(images))
        known, counts = np.unique(hashes, return_counts=True)
        taken: set[str] = set()
        self._images = images
        self._amended: dict[int, str] = {}
        for number in np.flatnonzero(np.isin(hashes, known[counts > 1])).tolist():
            unique = key = safe_key(images[number].name)
            count = 1
            while unique in taken or (
                count > 1 and _holds(known, _hash(unique))
            ):  # nor may it be another one's own key
                count += 1
                unique = f"{key}-{count}"
            taken.add(unique)
            if unique != key:
                self._amended[number] = unique

    def __getitem__(self, number: int) -> str:
        return self._amended.get(number) or safe_key(self._images[number].name)


def _holds(ascending: NDArray[np.int64], value: int) -> bool:
    place = int(np.searchsorted(ascending, value))
    return place < len(ascending) and int(ascending[place]) == value


def safe_key(name: str) -> str:
    """A path without `..`, absolute beginnings, unprintable letters, and dots in its last part."""
    if not name.isprintable():
        name = "".join(letter if letter.isprintable() else "_" for letter in name)
    *folders, stem = [part for part in name.split("/") if part not in ("", ".", "..")] or ["image"]
    return "/".join([*folders, stem.replace(".", "_")])


def _hash(key: str) -> int:
    return int.from_bytes(
        blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little", signed=True
    )
