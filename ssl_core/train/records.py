"""Append-only records of a run (metrics, audit): one part per attempt, joined when the run is done.

A line is one JSON object with a `step`. A later attempt starts from a checkpoint and does the steps after it again, so
its lines replace those of earlier attempts from its first step on; a line that a kill cut short is ignored.
"""

import errno
import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np

from ssl_core.collectives import Collectives
from ssl_core.storage.local import publish_bytes
from ssl_core.types import LaneBatch


class Record:
    """Appends lines to `<folder>/<kind>/attempt-0001.jsonl`; each line reaches the file system at once.

    Lines that a full disk does not take wait in memory, in whole, for the next call.
    """

    def __init__(self, folder: Path, kind: str, *, attempt: int, first_step: int) -> None:
        path = part_path(folder, kind, attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._size = 0
        self._waiting = b""
        self._lock = Lock()
        self.append({"first_step": first_step})

    def append(self, line: dict[str, Any]) -> None:
        """Write one line, and those that wait."""
        with self._lock:
            self._waiting += json.dumps(line).encode() + b"\n"
            with suppress(OSError):
                self._write()

    def sync(self) -> None:
        """Have all lines survive a power failure; raises OSError where the disk takes no more."""
        with self._lock:
            self._write()
        os.fsync(self._file)

    def close(self) -> None:
        """Have all lines on the disk, where it takes them."""
        with suppress(OSError):
            self.sync()
        os.close(self._file)

    def _write(self) -> None:
        while self._waiting:
            try:
                written = os.pwrite(self._file, self._waiting, self._size)
            except OSError:
                os.ftruncate(self._file, self._size)
                raise
            if written < len(self._waiting):  # the disk is full in the middle of a line: the next call says so
                whole = self._waiting.rfind(b"\n", 0, written) + 1
                written = whole
                os.ftruncate(self._file, self._size + whole)
                if not whole:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += written
            self._waiting = self._waiting[written:]


def part_path(folder: Path, kind: str, attempt: int) -> Path:
    """Where an attempt's part of a record lies."""
    return folder / kind / f"attempt-{attempt:04d}.jsonl"


def read_part(path: Path) -> tuple[int | None, list[dict[str, Any]]]:
    """A part's first step (None where a kill left not even that) and its whole lines."""
    first_step, lines = None, list[dict[str, Any]]()
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = cast(dict[str, Any], json.loads(text))
        except json.JSONDecodeError:
            break
        if "step" in line:
            lines.append(line)
        else:
            first_step = int(line["first_step"])
    return first_step, lines


def join_parts(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The effective history: every step's line of the last attempt that did it, in order of steps."""
    history: dict[int, dict[str, Any]] = {}
    for path in sorted((folder / kind).glob("attempt-*.jsonl")):
        first_step, lines = read_part(path)
        if first_step is not None:
            history = {step: line for step, line in history.items() if step < first_step}
        history.update({int(line["step"]): line for line in lines})
    return [history[step] for step in sorted(history)]


def publish_joined(folder: Path, kind: str) -> None:
    """Write the effective history to `<folder>/<kind>.jsonl`, if there is any."""
    if (folder / kind).is_dir():
        text = "".join(json.dumps(line) + "\n" for line in join_parts(folder, kind))
        publish_bytes(folder / f"{kind}.jsonl", text.encode())


def audit_line(batch: LaneBatch, loss: float, collectives: Collectives) -> dict[str, Any]:
    """What anyone can check a step by: scheduled positions in lane order, a digest of all views, the loss to the bit.

    The digest is BLAKE2b over the digests of the lanes in lane order, so it does not depend on the number of workers.
    """
    mine = [(batch.positions[lane].tolist(), _lane_digest(batch, lane)) for lane in range(len(batch.positions))]
    parts: Sequence[list[tuple[list[int], bytes]]] = collectives.gather_objects(mine)
    everyone = [lane for part in parts for lane in part]
    digest = hashlib.blake2b(b"".join(lane for _, lane in everyone), digest_size=16)
    ids = [position for positions, _ in everyone for position in positions]
    return {"step": batch.step, "epoch": batch.epoch, "loss": loss.hex(), "ids": ids, "views": digest.hexdigest()}


def _lane_digest(batch: LaneBatch, lane: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(batch.groups):
        digest.update(np.ascontiguousarray(batch.groups[name][lane]).data)
    return digest.digest()
