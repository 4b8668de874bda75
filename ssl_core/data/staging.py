"""What a pack has done so far, so that the same command continues it after a kill.

    <folder>/listing-….jsonl                  what the source's bucket was found to hold
    <folder>/<plan>/<part>/shard-00000.tar    a shard; half written where it has no record
    <folder>/<plan>/<part>/shard-00000.json   the record of a finished one; appears whole, after it

A plan is a digest of the images and of all that decides what the shards are: what belongs to another is not looked at.
The folder is locked while its owner lives. It lies inside a local output, for a bucket in the cache folder, and is gone
when the data set is whole, or when nothing was finished.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssl_core.data.sources import Source
from ssl_core.data.survey import ShardScan
from ssl_core.errors import UserError
from ssl_core.storage.local import cache_folder, publish_bytes
from ssl_core.storage.s3 import Folder

STAGING_NAME = ".packing"
_VERSION = 1  # of records and of what the same plan makes


@dataclass(frozen=True, kw_only=True)
class FinishedShard:
    """A shard that need not be made again.

    Attributes:
        stop: how many images of the part, in their order, were looked at when it was full.
        skipped: "path: reason" of those that were left out since the shard before.
        scan: what it holds.
    """

    stop: int
    skipped: tuple[str, ...]
    scan: ShardScan


@contextmanager
def staging(output: Folder) -> Generator[Path]:
    """The locked folder for what is on its way to `output`; see above for how long it stays.

    A local `output` is made where it does not exist, and goes again where it stays empty.

    Raises:
        UserError: another process is packing there.
    """
    if isinstance(output, Path):
        folder = output / STAGING_NAME
    else:
        folder = cache_folder() / "packing" / hashlib.sha256(str(output).encode()).hexdigest()[:32]
    missing = [one for one in (output, *output.parents) if not one.exists()] if isinstance(output, Path) else []
    with _locked(folder, output):
        whole = False
        try:
            yield folder
            whole = True
        finally:
            if whole or not any(folder.glob("*/**/*.json")):
                shutil.rmtree(folder, ignore_errors=True)
            for one in missing:
                if not any(one.iterdir()):
                    one.rmdir()


@contextmanager
def _locked(folder: Path, output: Folder) -> Generator[None]:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another pack is writing into output={output}: wait for it, or choose another folder"
                ) from None
            if not folder.is_dir() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
                continue  # its owner removed it before it was ours
            yield
            return
        finally:
            os.close(descriptor)


def plan_digest(source: Source, options: Mapping[str, Any]) -> str:
    """A name for what will be made: the same images, as far as can be told without reading them, and options.

    Raises:
        UserError: an image cannot be looked at.
    """
    digest = hashlib.sha256(json.dumps([_VERSION, source.classes, options], sort_keys=True).encode())
    for image in source.images:
        try:
            line = f"{image.name}\0{image.extension}\0{image.label}\0{image.origin}\0{image.stamp()}\n"
        except OSError as error:
            raise cannot_be_read(image.origin, error) from error
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def cannot_be_read(origin: str, error: OSError) -> UserError:
    """Leaving such an image out would make another data set without a word: it may be readable tomorrow."""
    return UserError(
        f"{origin} cannot be read ({error.strerror or error}): no data set was made: mend it and give the same command"
    )


def shard_name(number: int) -> str:
    """The name of a part's shard."""
    return f"shard-{number:05d}.tar"


class StagedPart:
    """One part of a plan: its shards on their way, and the records of those that are finished."""

    def __init__(self, folder: Path, part: str) -> None:
        self.part = part
        self.folder = folder / part
        self.folder.mkdir(parents=True, exist_ok=True)

    def finish(self, shard: FinishedShard) -> None:
        """Record that a shard is where it belongs."""
        publish_bytes(self._record(shard.scan.info.name), json.dumps(asdict(shard)).encode())

    def finished(self) -> list[FinishedShard]:
        """The finished shards from the first on, without a gap."""
        found: list[FinishedShard] = []
        while (record := self._record(shard_name(len(found)))).is_file():
            values = json.loads(record.read_text(encoding="utf-8"))
            scan = ShardScan.from_json(values["scan"])
            found.append(FinishedShard(stop=values["stop"], skipped=tuple(values["skipped"]), scan=scan))
        return found

    def _record(self, name: str) -> Path:
        return self.folder / f"{Path(name).stem}.json"
