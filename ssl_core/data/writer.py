"""From images to shards and a manifest: shuffled once by keys, written in WebDataset's form, all or nothing.

Same images, seed and shard size give the same bytes. Every image is decoded before it is taken, so that what does not
decode is known when the data set is made and not in the middle of a run.
"""

import fcntl
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ssl_core import rng
from ssl_core.data.decode import DecodeError, decode
from ssl_core.data.indexing import index_folder
from ssl_core.data.integrity import check_shards
from ssl_core.data.manifest import MANIFEST_NAME, Manifest, load_manifest, save_manifest
from ssl_core.data.sources import Source, SourceImage
from ssl_core.data.splits import holdout_split
from ssl_core.errors import UserError
from ssl_core.storage.local import publish_bytes, sync_folder

SKIPPED_NAME = "skipped.txt"
_STAGING = ".pack-"
_AHEAD = 64  # images read before they are written


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What `pack` made: a data set per part ("" where there is one), and what it left out ("path: reason")."""

    parts: dict[str, tuple[Path, Manifest]]
    skipped: tuple[str, ...]


def pack(
    source: Source,
    output: Path,
    *,
    shard_samples: int = 1000,
    seed: int = 0,
    val_fraction: float = 0.0,
    threads: int | None = None,
    done: Callable[[int, int], None] = lambda images, of: None,
) -> Packed:
    """Write a source's images as shards with a manifest into `output`, or into `train` and `val` in it.

    Images that do not decode are left out and listed in `skipped.txt`. Everything is made aside and put in place at the
    end, manifests last. Packing the same again into the same folder changes nothing.

    Args:
        source: the images.
        output: a folder that does not exist, is empty, or holds just what would be written.
        shard_samples: samples in a shard (fewer in the last).
        seed: of the shuffle and of the split.
        val_fraction: the share, class by class, that goes to `val`.
        threads: how many images are read and checked at a time.
        done: called with (images done, images).

    Raises:
        UserError: the output holds something else, a file cannot be read, or no image decodes.
    """
    _check_output(output, source, ("train", "val") if val_fraction > 0 else ("",))
    parts = _split(source, seed, val_fraction)
    keys = _keys(source.images)
    skipped: list[str] = []
    count = 0

    def counted() -> None:
        nonlocal count
        count += 1
        done(count, len(source.images))

    with _staging(output) as staging:
        manifests: dict[str, Manifest] = {}
        for part, members in parts.items():
            folder = staging / part
            folder.mkdir(exist_ok=True)
            order = members[np.argsort(rng.key(seed, "pack.shuffle", members), kind="stable")]
            chosen = [(keys[member], source.images[member]) for member in order.tolist()]
            _write_shards(_checked(chosen, threads, skipped, counted), folder, shard_samples)
            if not any(folder.glob("*.tar")):
                raise UserError(
                    f"none of the {len(members)} images for {output / part} can be decoded, such as {skipped[0]}"
                )
            manifests[part], _ = index_folder(folder, classes=source.classes, threads=threads)
        if skipped:
            publish_bytes(
                staging / SKIPPED_NAME, ("\n".join(sorted(skipped)) + "\n").encode("utf-8", "surrogateescape")
            )
        return Packed(parts=_put_in_place(staging, output, manifests), skipped=tuple(sorted(skipped)))


def _check_output(output: Path, source: Source, parts: Sequence[str]) -> None:
    """Refuse, before the work, a folder that holds something else."""
    if output.exists() and not output.is_dir():
        raise UserError(f"output={output} is a file: name a folder")
    if not output.is_dir() or all(entry.match(f"{_STAGING}*") for entry in output.iterdir()):
        return
    other = f"output={output} is not empty"
    if not all((output / part / MANIFEST_NAME).is_file() for part in parts):
        raise UserError(f"{other} and holds no finished data set of this kind: choose another folder or empty it")
    samples = sum(load_manifest(output / part).num_samples for part in parts)
    skipped = output / SKIPPED_NAME
    left_out = len(skipped.read_bytes().splitlines()) if skipped.is_file() else 0
    if samples + left_out != len(source.images):
        raise UserError(
            f"{other}: it holds a data set of {samples + left_out} images, the source has {len(source.images)}: "
            "choose another folder or remove it"
        )


def _split(source: Source, seed: int, val_fraction: float) -> dict[str, Any]:
    """Members of each part: int64 arrays of indices into the source's images."""
    if not val_fraction:
        return {"": np.arange(len(source.images))}
    labels = np.asarray([0 if image.label is None else image.label + 1 for image in source.images], dtype=np.int64)
    train, val = holdout_split(labels, val_fraction, seed=seed, purpose="pack.split")
    if not len(val):
        raise UserError(
            f"val_fraction={val_fraction} of {len(source.images)} images leaves none for val: take more images or none"
        )
    return {"train": train, "val": val}


def _keys(images: Sequence[SourceImage]) -> list[str]:
    """A key per image: its name in the source, made safe for a tar and for WebDataset (no dots), and unique."""
    taken: set[str] = set()
    keys: list[str] = []
    for image in images:
        parts = [part for part in image.name.split("/") if part not in ("", ".", "..")]
        *folders, stem = ["".join(letter if letter.isprintable() else "_" for letter in part) for part in parts] or [
            "image"
        ]
        key = "/".join([*folders, stem.replace(".", "_")])
        unique, number = key, 1
        while unique in taken:
            number += 1
            unique = f"{key}-{number}"
        taken.add(unique)
        keys.append(unique)
    return keys


def _checked(
    chosen: Sequence[tuple[str, SourceImage]], threads: int | None, skipped: list[str], counted: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    """Read and decode images, some ahead, and yield the samples of those that decode, in order."""
    waiting: deque[tuple[str, SourceImage, Future[bytes]]] = deque()
    remaining = iter(chosen)
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        try:
            while True:
                while len(waiting) < _AHEAD and (following := next(remaining, None)) is not None:
                    waiting.append((*following, pool.submit(_read_checked, following[1])))
                if not waiting:
                    return
                key, image, reading = waiting.popleft()
                try:
                    data = reading.result()
                except DecodeError as error:
                    skipped.append(f"{image.origin}: {error}")
                else:
                    label = {} if image.label is None else {"cls": str(image.label).encode()}
                    yield {"__key__": key, image.extension: data, **label}
                counted()
        finally:
            pool.shutdown(cancel_futures=True)


def _read_checked(image: SourceImage) -> bytes:
    try:
        data = image.read()
    except OSError as error:
        raise UserError(f"{image.origin} cannot be read ({error.strerror or error}): nothing was packed") from error
    decode(data)
    return data


def _write_shards(samples: Iterator[dict[str, Any]], folder: Path, shard_samples: int) -> None:
    """Write samples as `shard-00000.tar` and so on, the same bytes for the same samples."""
    from webdataset.writer import TarWriter  # imports torch, which only those who write shards shall wait for

    number = 0
    sample = next(samples, None)
    while sample is not None:
        with (folder / f"shard-{number:05d}.tar").open("wb") as file:
            with TarWriter(file, mtime=0, encoder=False) as writer:
                for _ in range(shard_samples):
                    if sample is not None:
                        writer.write(sample)
                        sample = next(samples, None)
            file.flush()
            os.fsync(file.fileno())
        number += 1


@contextmanager
def _staging(output: Path) -> Generator[Path, None, None]:
    """A hidden folder inside `output`, gone at the end; so is `output` where it did not exist and stayed empty.

    The folder is locked while its owner lives, so that what a killed one left behind can be told and is removed.
    """
    missing = [folder for folder in (output, *output.parents) if not folder.exists()]
    output.mkdir(parents=True, exist_ok=True)
    for left in output.glob(f"{_STAGING}*"):
        with _locked(left) as abandoned:
            if abandoned:
                shutil.rmtree(left)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=output))
    try:
        with _locked(staging):
            yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in missing:
            if not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def _locked(folder: Path) -> Generator[bool, None, None]:
    """Lock a folder; whether that could be had."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        had = True
    except OSError:
        had = False
    try:
        yield had
    finally:
        os.close(descriptor)


def _put_in_place(staging: Path, output: Path, manifests: dict[str, Manifest]) -> dict[str, tuple[Path, Manifest]]:
    """Move the parts to where they belong, manifests last; where the same is there already, it stays untouched."""
    standing = {part: load_manifest(output / part) for part in manifests if (output / part / MANIFEST_NAME).is_file()}
    if standing:
        for part in standing:
            check_shards(standing[part])
        if any(standing[part].digest != manifest.digest for part, manifest in manifests.items()):
            raise UserError(f"output={output} holds a data set of other content: choose another folder or remove it")
        return {part: (output / part, manifest) for part, manifest in standing.items()}
    for part in manifests:
        (output / part).mkdir(exist_ok=True)
        for shard in sorted((staging / part).glob("*.tar")):
            shard.rename(output / part / shard.name)
        sync_folder(output / part)
    if (staging / SKIPPED_NAME).is_file():
        (staging / SKIPPED_NAME).rename(output / SKIPPED_NAME)
    for part in manifests:
        save_manifest(replace(manifests[part], root=str(output / part)), output / part)
    return {part: (output / part, load_manifest(output / part)) for part in manifests}
