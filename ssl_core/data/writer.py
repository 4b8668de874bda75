"""From images to shards and a manifest: shuffled once by keys, written in WebDataset's form, all or nothing.

Same images, seed, shard size and options give the same bytes, however often the work was cut short: the same command
continues after the last shard that was finished. Every image is decoded before it is taken, so that what does not
decode is known when the data set is made and not in the middle of a run.
"""

import errno
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_core import rng
from ssl_core.data.indexing import class_names
from ssl_core.data.keys import SafeKeys
from ssl_core.data.looking import Chosen, Looker
from ssl_core.data.looking_ahead import processes_for
from ssl_core.data.manifest import Manifest
from ssl_core.data.placing import Parts, Place, folder_of, place_at, publish, skipped_before
from ssl_core.data.recode import Recoding
from ssl_core.data.shard_writer import PartWriter, WrittenPart
from ssl_core.data.sources import Source
from ssl_core.data.splits import holdout_split
from ssl_core.data.staging import StagedPart, plan_digest, staging
from ssl_core.errors import Resumable, UserError
from ssl_core.storage.s3 import Folder

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What `pack` made.

    Attributes:
        parts: folder and manifest of each part ("" where there is one).
        skipped: "path: reason" of each image that was left out, sorted.
        num_kept: how many shards were finished before, by the same command.
    """

    parts: Parts
    skipped: tuple[str, ...]
    num_kept: int


def pack(
    source: Source | Callable[[Path], Source],
    output: Folder,
    *,
    shard_samples: int = 1000,
    seed: int = 0,
    val_fraction: float = 0.0,
    recoding: Recoding | None = None,
    workers: int | None = None,
    processes: int | None = None,
    done: Callable[[int, int], None] = lambda images, of: None,
) -> Packed:
    """Write a source's images as shards with a manifest into `output`, or into `train` and `val` in it.

    Images that do not decode are left out and listed in `skipped.txt`; manifests come last. Packing the same again into
    the same place changes nothing.

    Args:
        source: the images, or what lists them, which is given a folder that outlives a kill.
        output: a folder, here or in a bucket, that does not exist, is empty, or holds just what would be written.
        shard_samples: samples in a shard (fewer in the last).
        seed: of the shuffle and of the split.
        val_fraction: the share, class by class, that goes to `val`.
        recoding: how images are stored; default: as they are.
        workers: how many images are read and checked at a time; default: one a core, or what the source asks for.
        processes: in how many processes, 0: in this one; default: by the number of workers, cores and images.
        done: called with (images done, images).

    Raises:
        UserError: the output holds something else, a file cannot be read, or no image decodes.
        Resumable: the disk is full, a bucket does not answer well, or a process was killed.
    """
    names = ("train", "val") if val_fraction > 0 else ("",)
    recoding = recoding or Recoding()
    place = place_at(output, names)
    with staging(output) as folder, _full_disk_in_words(folder):
        images = source if isinstance(source, Source) else source(folder)
        if len(place.standing) == len(names):
            _check_count(place, output, images)
        options = {"shard_samples": shard_samples, "seed": seed, "val_fraction": val_fraction} | recoding.identity
        plan = plan_digest(images, options)
        staged = {name: StagedPart(folder / plan, name) for name in names}
        place.begin(plan, list(staged.values()))
        workers = workers or max(os.cpu_count() or 1, images.readers)
        if processes is None:
            processes = processes_for(workers, num_images=len(images.images))
        writer = PartWriter(
            place=place,
            shard_samples=shard_samples,
            looker=Looker(recoding=recoding, threads=-(-workers // max(1, processes))),
            processes=processes,
            advance=_Progress(len(images.images), done),
        )
        orders = _orders(images, seed, val_fraction)
        keys = SafeKeys(images.images)

        def write(name: str) -> WrittenPart:
            def chosen(start: int) -> Iterator[Chosen]:
                return ((keys[member], images.images[member]) for member in orders[name][start:].tolist())

            return writer.write(staged[name], chosen)

        written = {name: write(name) for name in names}
        manifests = {name: _manifest(images, written[name], orders[name], folder_of(output, name)) for name in names}
        for name in names:
            place.finish(staged[name], manifests[name].shards)
        skipped = tuple(sorted(line for part in written.values() for line in part.skipped))
        parts = publish(place, output, manifests, skipped)
    return Packed(parts=parts, skipped=skipped, num_kept=sum(part.num_kept for part in written.values()))


class _Progress:
    """Counts images for whoever shows it."""

    def __init__(self, num_images: int, done: Callable[[int, int], None]) -> None:
        self._count, self._num_images, self._done = 0, num_images, done

    def __call__(self, more: int) -> None:
        self._count += more
        self._done(self._count, self._num_images)


@contextmanager
def _full_disk_in_words(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise Resumable(
            f"cannot write into {folder.parent} ({error.strerror}): free some space, then the same command continues"
        ) from error


def _check_count(place: Place, output: Folder, source: Source) -> None:
    """Refuse, before the work, a data set of another size."""
    images = sum(manifest.num_samples for manifest in place.standing.values()) + skipped_before(output)
    if images != len(source.images):
        raise UserError(
            f"output={output} is not empty: it holds a data set of {images} images, the source has "
            f"{len(source.images)}: choose another folder or remove it"
        )


def _orders(source: Source, seed: int, val_fraction: float) -> Mapping[str, NDArray[np.int64]]:
    """The images of each part in their order: indices into the source's images."""
    parts = {"": np.arange(len(source.images))}
    if val_fraction:
        labels = np.fromiter(
            (0 if image.label is None else image.label + 1 for image in source.images), np.int64, len(source.images)
        )
        train, val = holdout_split(labels, val_fraction, seed=seed, purpose="pack.split")
        if not len(val):
            raise UserError(
                f"val_fraction={val_fraction} of {len(source.images)} images leaves none for val: take more images or "
                "none"
            )
        parts = {"train": train, "val": val}
    return {
        part: members[np.argsort(rng.key(seed, "pack.shuffle", members), kind="stable")]
        for part, members in parts.items()
    }


def _manifest(source: Source, written: WrittenPart, order: NDArray[np.int64], folder: Folder) -> Manifest:
    if not written.survey.scans:
        raise UserError(f"none of the {len(order)} images for {folder} can be decoded, such as {written.skipped[0]}")
    return written.survey.manifest(str(folder), class_names(folder, source.classes, written.survey))
