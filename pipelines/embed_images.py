"""The images that `embed` reads: samples of shards, or image files that nobody packed."""

import hashlib
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from ssl_core.data.decode import DecodeError, Pixels, decode
from ssl_core.data.manifest import MANIFEST_NAME, load_manifest
from ssl_core.data.reader import Reader
from ssl_core.data.sources import Source, open_source
from ssl_core.probe.features import centre_square
from ssl_core.storage.local import local_path
from ssl_core.storage.s3 import is_s3

_AHEAD = 2  # batches that are decoded before they are needed


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image on its way to the encoder."""

    key: str
    label: int | None
    image: Pixels | None  # uint8 [size, size, C]; None where the bytes do not decode


class Images(Protocol):
    """A data set to embed; safe to use from several threads."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, which labels are indices into."""
        ...

    def __len__(self) -> int: ...

    def item(self, number: int) -> Item:
        """Read and decode one image."""
        ...

    def digest(self) -> str:
        """A name for the content."""
        ...


def open_images(location: str, *, channels: int, size: int) -> Images:
    """Open shards (a folder with a manifest) or whatever `pack` takes as a source.

    Args:
        location: where they are; below `s3://`, packed ones alone.
        channels: what images are decoded to.
        size: the encoder's input size; images are resized to it where they are decoded, in threads.

    Raises:
        UserError: there is nothing, or not what can be read.
    """
    if is_s3(location):
        return ShardImages(Reader(load_manifest(location), channels=channels), size)
    path = local_path(location) if location != "digits" else None
    if path is not None and (path.name == MANIFEST_NAME or path.is_dir()) and _is_packed(location):
        return ShardImages(Reader(load_manifest(location), channels=channels), size)
    return LooseImages(open_source(location), channels, size)


def _is_packed(location: str) -> bool:
    path = local_path(location)
    return path.is_file() or (path / MANIFEST_NAME).is_file() or any(path.glob("*.tar"))


class ShardImages:
    """Samples by position."""

    def __init__(self, reader: Reader, size: int) -> None:
        self._reader, self._size = reader, size
        self._labels: list[int] = reader.labels().tolist()
        self.classes = reader.manifest.classes

    def __len__(self) -> int:
        return self._reader.num_samples

    def item(self, number: int) -> Item:
        """The sample at a position: its own image, or None; what quarantine shows instead would be another image."""
        image = _decoded(self._reader.encoded(number), self._reader.channels, self._size)
        label = self._labels[number]
        return Item(key=self._reader.key(number), label=None if label < 0 else label, image=image)

    def digest(self) -> str:
        """The manifest's digest."""
        return self._reader.manifest.digest


class LooseImages:
    """Image files."""

    def __init__(self, source: Source, channels: int, size: int) -> None:
        self._source, self._channels, self._size = source, channels, size
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self._source.images)

    def item(self, number: int) -> Item:
        """The image of a file, under its path without the extension."""
        image = self._source.images[number]
        return Item(key=image.name, label=image.label, image=_decoded(image.read(), self._channels, self._size))

    def digest(self) -> str:
        """sha256 over all names, labels and bytes, in order; reads every file."""
        total = hashlib.sha256()
        for image in self._source.images:
            total.update(f"{image.name}\0{image.label}\0".encode() + hashlib.sha256(image.read()).digest())
        return total.hexdigest()


def _decoded(data: bytes, channels: int, size: int) -> Pixels | None:
    try:
        return centre_square(decode(data, channels=channels), size)
    except DecodeError:
        return None


def decoded_batches(images: Images, *, batch: int, threads: int) -> Generator[list[Item]]:
    """All images in order, decoded in threads some batches ahead of whoever takes them."""
    waiting: deque[list[Future[Item]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        try:
            for start in range(0, len(images), batch):
                numbers = range(start, min(start + batch, len(images)))
                waiting.append([pool.submit(images.item, number) for number in numbers])
                if len(waiting) > _AHEAD:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)
