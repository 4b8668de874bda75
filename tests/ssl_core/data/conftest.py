"""Small images, shards and data sets, and a cache folder of their own for the stamps."""

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_core.data.indexing import index_folder
from ssl_core.data.manifest import Manifest, load_manifest, save_manifest

MakeImage = Callable[..., bytes]
MakeTar = Callable[..., bytes]
MakeSet = Callable[..., Manifest]


@pytest.fixture(autouse=True)
def stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stamps go into the test's own folder."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("SSL_PIPELINES_CACHE", str(cache))
    return cache


@pytest.fixture
def make_image() -> MakeImage:
    """`make_image(number, kind="JPEG", size=(width, height), mode="RGB")` → bytes; each number is another image."""

    def make(number: int = 0, *, kind: str = "JPEG", size: tuple[int, int] = (16, 12), mode: str = "RGB") -> bytes:
        y, x = np.mgrid[: size[1], : size[0]]
        pixels = np.stack([x * 9 + number * 31, y * 11 + number * 17, (x + y + number * 7) * 5], -1) % 256
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(stream, kind)
        return stream.getvalue()

    return make


@pytest.fixture
def make_tar() -> MakeTar:
    """`make_tar([(name, bytes), …], format=tarfile.PAX_FORMAT)` → the bytes of a tar."""

    def make(members: Sequence[tuple[str, bytes]], *, form: int = tarfile.PAX_FORMAT) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return stream.getvalue()

    return make


@pytest.fixture
def make_set(tmp_path: Path, make_image: MakeImage, make_tar: MakeTar) -> MakeSet:
    """`make_set(samples per shard, bad=positions, name="set")` → a labelled set; a bad sample's image is text."""

    def make(shards: Sequence[int] = (5, 4), *, bad: Sequence[int] = (), name: str = "set") -> Manifest:
        folder = tmp_path / name
        folder.mkdir()
        position = 0
        for number, samples in enumerate(shards):
            members: list[tuple[str, bytes]] = []
            for _ in range(samples):
                image = b"\xff\xd8 no image" if position in bad else make_image(position)
                members += [
                    (f"sample-{position:03d}.jpg", image),
                    (f"sample-{position:03d}.cls", str(position % 3).encode()),
                ]
                position += 1
            (folder / f"shard-{number:05d}.tar").write_bytes(make_tar(members))
        manifest, _ = index_folder(folder)
        save_manifest(manifest, folder)
        return load_manifest(folder)

    return make
