"""Which checkpoints there are, by the names of their files alone: no torch, so that a listing of runs is quick."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ssl_core.storage.files import files_at
from ssl_core.storage.s3 import Folder

CHECKPOINTS = "checkpoints"  # the folder within a run's
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{8,})\.attempt-(\d{4,})")


@dataclass(frozen=True, kw_only=True, order=True)
class SavedStep:
    """A checkpoint in a store; they are ordered by step, then by attempt."""

    step: int
    attempt: int

    @property
    def name(self) -> str:
        """Its folder."""
        return f"step-{self.step:08d}.attempt-{self.attempt:04d}"


def saved_steps(folder: Folder) -> list[SavedStep]:
    """The complete checkpoints in a folder or a bucket, newest first."""
    return complete(files_at(folder).names())


def complete(names: Iterable[str]) -> list[SavedStep]:
    """The checkpoints among these files that have a manifest, newest first."""
    found = (saved_step(name) for name in names if name.endswith(f"/{MANIFEST}"))
    return sorted((saved for saved in found if saved is not None), reverse=True)


def saved_step(name: str) -> SavedStep | None:
    """Which checkpoint a file belongs to."""
    found = _NAME.fullmatch(name.partition("/")[0])
    return SavedStep(step=int(found[1]), attempt=int(found[2])) if found else None
