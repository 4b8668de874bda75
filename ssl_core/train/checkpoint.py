"""Checkpoints: safetensors and JSON in a folder that is complete when its manifest, written last, is there.

State is small: weights, optimiser, method state, step, identity, quarantine. There is no generator and no loader
state, because randomness and order are functions of the step.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_core.errors import UserError
from ssl_core.storage.local import publish_bytes, sha256_file

FORMAT = 1
_MODEL, _OPTIMIZER, _STATE, _MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after `step` steps."""

    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int = 2) -> Path:
    """Write a checkpoint into `<folder>/step-<n>` and drop all but the newest `keep`.

    The new one stands complete before an old one goes; a kill at any moment leaves what was complete before.
    """
    assert keep >= 1, "a checkpoint is kept when it is written"
    final = folder / f"step-{checkpoint.step:08d}"
    partial = folder / f".partial-{final.name}"
    for stale in folder.glob(".partial-*"):
        shutil.rmtree(stale)
    partial.mkdir(parents=True)
    save_file(_contiguous(checkpoint.model), partial / _MODEL)
    save_file(_contiguous(checkpoint.optimizer), partial / _OPTIMIZER)
    (partial / _STATE).write_text(json.dumps({"step": checkpoint.step, **checkpoint.state}), encoding="utf-8")
    digests = {name: sha256_file(partial / name) for name in (_MODEL, _OPTIMIZER, _STATE)}
    publish_bytes(partial / _MANIFEST, json.dumps({"format": FORMAT, "sha256": digests}).encode())
    for name in (_MODEL, _OPTIMIZER, _STATE):
        _sync(partial / name)
    if final.exists():  # a damaged one, or the run would have continued from it
        os.rename(final, folder / f".partial-replaced-{final.name}")
    os.rename(partial, final)
    _sync(folder)
    # newer ones can only be damaged: they do not count, and the run overtakes them
    old = [path for path in all_checkpoints(folder) if path.name <= final.name][keep:]
    for path in (*old, *folder.glob(".partial-*")):
        shutil.rmtree(path)
    return final


def all_checkpoints(folder: Path) -> list[Path]:
    """Every checkpoint, damaged ones too, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint back, every file checked against the manifest.

    Raises:
        UserError: it is damaged or of another format version.
    """
    try:
        manifest = cast(dict[str, Any], json.loads((path / _MANIFEST).read_text(encoding="utf-8")))
        if manifest["format"] != FORMAT:
            raise UserError(f"checkpoint {path} has format {manifest['format']}, this version reads {FORMAT}")
        for name in (_MODEL, _OPTIMIZER, _STATE):
            if sha256_file(path / name) != manifest["sha256"][name]:
                raise UserError(f"checkpoint {path}: {name} differs from its checksum")
        state = cast(dict[str, Any], json.loads((path / _STATE).read_text(encoding="utf-8")))
        model, optimizer = load_file(path / _MODEL), load_file(path / _OPTIMIZER)
    except UserError:
        raise
    except (OSError, KeyError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error
    return Checkpoint(step=int(state["step"]), model=model, optimizer=optimizer, state=state)


def newest_readable(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that is not."""
    complaints: list[str] = []
    for path in all_checkpoints(folder):
        try:
            return load_checkpoint(path), complaints
        except UserError as error:
            complaints.append(f"{error}; falling back to the one before")
    return None, complaints


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain row-major copies: safetensors keeps no strides."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
