"""Checkpoints on a disk or in a bucket: safetensors and JSON, complete once their manifest, written last, is there.

State is small: weights, optimiser, method state, step, identity, quarantine. There is no generator and no loader
state, because randomness and order are functions of the step.

    <folder>/claims/attempt-0003                              one file an attempt: the newest may write
    <folder>/step-00000500.attempt-0003/model.safetensors     …, optimizer.safetensors, state.json, manifest.json

An attempt writes folders of its own, so that a worker that was given up for dead and lives on cannot spoil what
another attempt writes; and before it completes a checkpoint it looks whether a later attempt has claimed the run.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_core.errors import Resumable, UserError
from ssl_core.storage.files import files_at
from ssl_core.storage.local import sha256_file
from ssl_core.storage.s3 import Folder, MissingObject
from ssl_core.train.saved_steps import MANIFEST, SavedStep, complete, saved_step

FORMAT = 2
_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_CONTENT = (_MODEL, _OPTIMIZER, _STATE)
_FORMAT_1 = re.compile(r"step-\d+/")
_CLAIM = re.compile(r"claims/attempt-(\d{4,})")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after `step` steps."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]

    def copied(self) -> "Checkpoint":
        """The same in memory of its own on the CPU, which no further step changes; row-major, as files are."""
        return replace(self, model=_copied(self.model), optimizer=_copied(self.optimizer))


class DamagedError(UserError):
    """A checkpoint is not what was written: the one before it may be."""


class SupersededError(Resumable):
    """A later attempt has claimed the run: this one may not write any more."""


class CheckpointStore:
    """The checkpoints of a run.

    Args:
        folder: where they are.
        attempt: who writes; reading is the same for all.
    """

    def __init__(self, folder: Folder, *, attempt: int = 1) -> None:
        self.folder, self._attempt = folder, attempt
        self._files = files_at(folder)

    def claim(self) -> None:
        """Begin an attempt: earlier ones can complete nothing any more, and what they left incomplete is removed.

        Raises:
            SupersededError: this attempt, or a later one, was begun by somebody else.
        """
        names = self._files.names()
        self._check_claims(names)
        if not self._files.create(f"claims/attempt-{self._attempt:04d}", uuid.uuid4().hex.encode()):
            raise SupersededError(f"attempt {self._attempt} at {self.folder} was begun by somebody else")
        whole = {saved.name for saved in complete(names)}
        self._files.remove(
            name
            for name in names
            if _CLAIM.fullmatch(name) or (saved_step(name) is not None and name.partition("/")[0] not in whole)
        )
        self._files.clear_unfinished()

    def _check_claims(self, names: list[str]) -> None:
        latest = max((int(found[1]) for name in names if (found := _CLAIM.fullmatch(name))), default=0)
        if latest > self._attempt:
            raise SupersededError(f"attempt {latest} has taken over the run, attempt {self._attempt} ends")

    def save(self, checkpoint: Checkpoint, *, keep: int = 2, best: int | None = None, resumed_from: int = 0) -> None:
        """Write a checkpoint, then remove all but the newest `keep` and that of step `best`.

        The new one stands complete before an old one goes; a kill at any moment leaves what was complete before.

        Args:
            checkpoint: what to write.
            keep: at least 1.
            best: a step whose checkpoint is kept besides.
            resumed_from: where this attempt began; what earlier attempts saved after it cannot be read, or this one
                would have begun there.

        Raises:
            SupersededError: a later attempt has claimed the run; nothing was completed.
            OSError, UserError, Resumable: the store is full, away or refuses; what was complete stays so.
        """
        assert keep >= 1, "a checkpoint is kept when it is written"
        this = SavedStep(step=checkpoint.step, attempt=self._attempt)
        digests: dict[str, str] = {}
        writers: dict[str, Callable[[Path], None]] = {
            _MODEL: partial(_write_tensors, checkpoint.model),
            _OPTIMIZER: partial(_write_tensors, checkpoint.optimizer),
            _STATE: partial(_write_json, {"step": checkpoint.step, **checkpoint.state}),
        }
        for name, write in writers.items():
            with self._files.writing(f"{this.name}/{name}") as path:
                write(path)
                digests[name] = sha256_file(path)
        names = self._files.names()
        self._check_claims(names)
        manifest = json.dumps({"format": FORMAT, "sha256": digests}).encode()
        if not self._files.create(f"{this.name}/{MANIFEST}", manifest):
            return  # this very step of this very attempt is there
        with suppress(OSError, UserError, Resumable):  # this one is complete; the next one tries again
            self._remove_superfluous(names, this, keep=keep, best=best, resumed_from=resumed_from)

    def _remove_superfluous(
        self, names: list[str], this: SavedStep, *, keep: int, best: int | None, resumed_from: int
    ) -> None:
        spared = {this, *self._spared(names, this, keep=keep, best=best, resumed_from=resumed_from)}
        self._remove([saved for saved in complete(names) if saved not in spared], names)

    def _spared(
        self, names: list[str], this: SavedStep, *, keep: int, best: int | None, resumed_from: int
    ) -> Iterator[SavedStep]:
        readable = [one for one in complete(names) if one.attempt == self._attempt or one.step <= resumed_from]
        older = [one for one in readable if one < this]
        yield from older[: keep - 1]
        yield from (one for one in older if one.step == best)
        yield from (one for one in complete(names) if one.step > this.step)  # unreadable; removed once overtaken

    def _remove(self, superfluous: list[SavedStep], names: list[str]) -> None:
        """The manifest goes first: half of a checkpoint is none."""
        gone = {one.name for one in superfluous}
        self._files.remove(f"{name}/{MANIFEST}" for name in sorted(gone))
        self._files.remove(name for name in names if name.partition("/")[0] in gone and not name.endswith(MANIFEST))

    def saved(self) -> list[SavedStep]:
        """Every complete checkpoint, damaged ones too, newest first; raises UserError where there are older formats."""
        names = self._files.names()
        if any(_FORMAT_1.match(name) for name in names):
            raise UserError(
                f"the checkpoints at {self.folder} have format 1, this version reads {FORMAT}: use a new name"
            )
        return complete(names)

    def load(self, saved: SavedStep) -> Checkpoint:
        """Read a checkpoint back, every file checked against the manifest.

        Raises:
            DamagedError: it is damaged.
            UserError: it is of another format version, or may not be read.
            Resumable: the store does not answer well.
        """
        where = f"checkpoint {self.folder / saved.name}"
        try:
            manifest = cast(dict[str, Any], json.loads(self._files.read(f"{saved.name}/{MANIFEST}") or b""))
            if manifest["format"] != FORMAT:
                raise UserError(f"{where} has format {manifest['format']}, this version reads {FORMAT}")
            with ExitStack() as opened:
                paths = {name: opened.enter_context(self._files.reading(f"{saved.name}/{name}")) for name in _CONTENT}
                for name, path in paths.items():
                    if sha256_file(path) != manifest["sha256"][name]:
                        raise DamagedError(f"{where}: {name} differs from its checksum")
                state = cast(dict[str, Any], json.loads(paths[_STATE].read_text(encoding="utf-8")))
                model, optimizer = load_file(paths[_MODEL]), load_file(paths[_OPTIMIZER])
        except (MissingObject, FileNotFoundError, IsADirectoryError) as error:
            raise DamagedError(f"{where} cannot be read: {error}") from error
        except UserError:
            raise
        except OSError as error:
            raise Resumable(f"{where} cannot be read now ({error}): the same command tries again") from error
        except (KeyError, ValueError, TypeError, AttributeError, SafetensorError) as error:
            raise DamagedError(f"{where} cannot be read: {error}") from error
        return Checkpoint(step=int(state["step"]), model=model, optimizer=optimizer, state=state)

    def newest_readable(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint that is whole, None where there is none at all; a line for each newer one that is not.

        Raises:
            UserError, Resumable: as `load`; damage only where all there are is damaged.
        """
        complaints: list[str] = []
        for saved in self.saved():
            try:
                return self.load(saved), complaints
            except DamagedError as error:
                complaints.append(f"{error}; falling back to the one before")
        if complaints:
            raise UserError(
                f"none of the {len(complaints)} checkpoints at {self.folder} can be read, the newest: "
                f"{complaints[0].removesuffix('; falling back to the one before')}; remove them to begin anew"
            )
        return None, complaints


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    row_major = torch.contiguous_format
    return {name: tensor.detach().to("cpu", copy=True, memory_format=row_major) for name, tensor in tensors.items()}


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Row-major: safetensors keeps no strides."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
