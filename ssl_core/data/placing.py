"""Where a pack's shards go: a local folder or a bucket's; whole for readers once the manifests, the last, are there.

What stands there already is compared and never replaced: the same stays untouched, anything else is refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ssl_core.data.integrity import check_shards
from ssl_core.data.manifest import MANIFEST_NAME, Manifest, ShardInfo, load_manifest, save_manifest
from ssl_core.data.staging import STAGING_NAME, StagedPart
from ssl_core.errors import UserError
from ssl_core.storage import s3
from ssl_core.storage.local import publish_bytes, sync_folder
from ssl_core.storage.s3 import Folder, S3Location

SKIPPED_NAME = "skipped.txt"
_SHARD = re.compile(r"shard-\d{5,}\.tar")

Parts = dict[str, tuple[Folder, Manifest]]


class Place(Protocol):
    """Where the parts of a data set go.

    Attributes:
        standing: the manifests that are there already, by part.
    """

    standing: dict[str, Manifest]

    def begin(self, plan: str, staged: Sequence[StagedPart]) -> None:
        """Refuse, before the work, what is neither this plan's nor a whole data set; clear away what a kill left."""
        ...

    def holds(self, staged: StagedPart, shard: ShardInfo) -> bool:
        """Whether a shard that was put is still there."""
        ...

    def put(self, staged: StagedPart, shard: ShardInfo) -> None:
        """Take over a shard that is whole in its staged part."""
        ...

    def finish(self, staged: StagedPart, shards: Sequence[ShardInfo]) -> None:
        """Put in place what is still staged."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a small file beside the parts."""
        ...

    def end(self) -> None:
        """The manifests are there."""
        ...


def place_at(output: Folder, parts: Sequence[str]) -> Place:
    """The place for these parts ("" where there is one).

    Raises:
        UserError: something else is there.
        Resumable: the bucket does not answer well.
    """
    return LocalPlace(output, parts) if isinstance(output, Path) else BucketPlace(output, parts)


def publish(place: Place, output: Folder, manifests: Mapping[str, Manifest], skipped: Sequence[str]) -> Parts:
    """Finish with the list of what was left out and the manifests; where the same is there already, it stays."""
    for part, manifest in place.standing.items():
        check_shards(manifest)
        if manifest.digest != manifests[part].digest:
            raise other_content(output)
    if len(place.standing) < len(manifests) and skipped:
        place.write(SKIPPED_NAME, ("\n".join(skipped) + "\n").encode("utf-8", "surrogateescape"))
    for part, manifest in manifests.items():
        if part not in place.standing:
            save_manifest(replace(manifest, root=str(folder_of(output, part))), folder_of(output, part))
    place.end()
    return {part: (folder_of(output, part), load_manifest(str(folder_of(output, part)))) for part in manifests}


def folder_of(output: Folder, part: str) -> Folder:
    """The folder of a part."""
    return output / part if part else output


def other_content(output: Folder) -> UserError:
    """Something else is there."""
    return UserError(f"output={output} holds a data set of other content: choose another folder or remove it")


def _not_of_this_kind(output: Folder) -> UserError:
    return UserError(
        f"output={output} is not empty and holds no finished data set of this kind: choose another folder or empty it"
    )


def _other_plan(output: Folder) -> UserError:
    return UserError(
        f"output={output} holds the beginning of a data set of other images or options: wait for the command "
        "that began it or give it again, choose another folder or empty it"
    )


def _stands(standing: Mapping[str, Manifest], output: Folder, part: str, shard: ShardInfo) -> bool:
    """Whether a shard's part is there already; raises UserError where it is there without this shard."""
    if part in standing and shard not in standing[part].shards:
        raise other_content(output)
    return part in standing


def skipped_before(output: Folder) -> int:
    """How many images a finished data set left out."""
    path = output / SKIPPED_NAME
    if isinstance(path, Path):
        return len(path.read_bytes().splitlines()) if path.is_file() else 0
    return len((s3.read_bytes(path) or b"").splitlines())


class LocalPlace:
    """A local folder: shards stay staged in it until all are finished."""

    def __init__(self, output: Path, parts: Sequence[str]) -> None:
        self._output, self._parts = output, parts
        self.standing: dict[str, Manifest] = {}
        if output.exists() and not output.is_dir():
            raise UserError(f"output={output} is a file: name a folder")
        if not any(self._names()):
            return
        self.standing = {part: load_manifest(output / part) for part in parts if self._is_whole(part)}
        if len(self.standing) < len(parts) and not (output / STAGING_NAME).is_dir():
            raise _not_of_this_kind(output)

    def _is_whole(self, part: str) -> bool:
        return (self._output / part / MANIFEST_NAME).is_file()

    def _names(self) -> Iterable[str]:
        """What is there, with the parts' folders opened."""
        if self._output.is_dir():
            for entry in self._output.iterdir():
                if entry.name in self._parts and entry.is_dir():
                    yield from (f"{entry.name}/{inner.name}" for inner in entry.iterdir())
                elif entry.name != STAGING_NAME:
                    yield entry.name

    def begin(self, plan: str, staged: Sequence[StagedPart]) -> None:
        """A pack that was killed while it put its shards in place has left some there, and their records."""
        if len(self.standing) == len(self._parts):
            return
        ours = {SKIPPED_NAME, *(f"{part}/{MANIFEST_NAME}".lstrip("/") for part in self.standing)}
        for part in staged:
            ours |= {f"{part.part}/{shard.scan.info.name}".lstrip("/") for shard in part.finished()}
        if not ours.issuperset(self._names()):
            raise _other_plan(self._output)

    def holds(self, staged: StagedPart, shard: ShardInfo) -> bool:
        """Whether it stands, is staged, or was put in place already; told by its size."""
        if staged.part in self.standing:
            return shard in self.standing[staged.part].shards
        places = (staged.folder / shard.name, self._output / staged.part / shard.name)
        return any(path.is_file() and path.stat().st_size == shard.bytes for path in places)

    def put(self, staged: StagedPart, shard: ShardInfo) -> None:
        """Leave it where it is, until all are there."""
        if _stands(self.standing, self._output, staged.part, shard):
            (staged.folder / shard.name).unlink()

    def finish(self, staged: StagedPart, shards: Sequence[ShardInfo]) -> None:
        """Move the shards of a part to where they belong."""
        if staged.part not in self.standing:
            folder = self._output / staged.part
            folder.mkdir(exist_ok=True)
            for shard in shards:
                if (staged.folder / shard.name).is_file():
                    (staged.folder / shard.name).replace(folder / shard.name)
            sync_folder(folder)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole or not at all."""
        publish_bytes(self._output / name, data)

    def end(self) -> None:
        """Nothing is left to do."""


class BucketPlace:
    """A bucket's folder: each shard is sent when it is whole, with its checksum and its plan in its metadata.

    Machines cannot lock a folder against each other there. From before the first shard until after the manifests,
    `.packing` has the plan of what is there; it is made only where there is none. Who has another plan is refused, who
    has the same sends the same bytes.
    """

    def __init__(self, output: S3Location, parts: Sequence[str]) -> None:
        self._output, self._parts = output, parts
        self._plan = ""
        self._claimed = False
        manifests: set[str] = set()
        for name, _ in s3.list_sizes(output):
            part, slash, file = name.rpartition("/")
            if file == MANIFEST_NAME and part in parts:
                manifests.add(part)
            elif not (_SHARD.fullmatch(file) and part in parts) and (slash or file not in (SKIPPED_NAME, STAGING_NAME)):
                raise _not_of_this_kind(output)
        self.standing = {part: load_manifest(str(folder_of(output, part))) for part in parts if part in manifests}

    def begin(self, plan: str, staged: Sequence[StagedPart]) -> None:
        """The claim and the shards there must be of the same plan; what was sent and never completed is removed."""
        self._plan = plan
        if len(self.standing) < len(self._parts):
            if s3.read_bytes(self._claim) not in (None, plan.encode()):
                raise _other_plan(self._output)
            self._check_shards()
        s3.abort_uploads(self._output)

    @property
    def _claim(self) -> S3Location:
        return self._output / STAGING_NAME

    def _check_shards(self) -> None:
        """Refuse shards of another plan, told by the first."""
        shards = (name for name, _ in s3.list_sizes(self._output) if _SHARD.fullmatch(name.rpartition("/")[2]))
        if (first := next(shards, None)) is not None:
            facts = s3.look_up(self._output / first)
            if facts is None or facts.metadata.get("plan") != self._plan:
                raise _other_plan(self._output)

    def _claim_it(self) -> None:
        """Before the first shard: from now on nobody begins with another plan; somebody may have since the start."""
        if self._claimed:
            return
        if not s3.create(self._claim, self._plan.encode()):
            raise _other_plan(self._output)
        try:
            self._check_shards()
        except UserError:
            self.end()
            raise
        self._claimed = True

    def holds(self, staged: StagedPart, shard: ShardInfo) -> bool:
        """Whether it stands, or is there with its size and its checksum."""
        if staged.part in self.standing:
            return shard in self.standing[staged.part].shards
        facts = s3.look_up(self._location(staged, shard))
        return facts == s3.ObjectFacts(size=shard.bytes, metadata=self._metadata(shard))

    def _location(self, staged: StagedPart, shard: ShardInfo) -> S3Location:
        return self._output / f"{staged.part}/{shard.name}".lstrip("/")

    def _metadata(self, shard: ShardInfo) -> dict[str, str]:
        return {"sha256": shard.sha256, "plan": self._plan}

    def put(self, staged: StagedPart, shard: ShardInfo) -> None:
        """Send it, unless it is there; then it goes from the local disk."""
        path = staged.folder / shard.name
        if not _stands(self.standing, self._output, staged.part, shard):
            self._claim_it()
            if not self.holds(staged, shard):
                s3.upload(path, self._location(staged, shard), metadata=self._metadata(shard))
        path.unlink()

    def finish(self, staged: StagedPart, shards: Sequence[ShardInfo]) -> None:
        """All are there; uploads whose first answer was lost are removed."""
        s3.abort_uploads(self._output)

    def write(self, name: str, data: bytes) -> None:
        """Write a small object."""
        s3.write_bytes(self._output / name, data)

    def end(self) -> None:
        """The claim goes."""
        if s3.read_bytes(self._claim) == self._plan.encode():
            s3.remove(self._output, [STAGING_NAME])
