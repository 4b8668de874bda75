"""A run's folder: who it is, what state it is in, and that nothing else becomes of it."""

import fcntl
import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from ssl_core.errors import Unavailable, UserError
from ssl_core.storage.local import local_path, publish_bytes
from ssl_core.storage.s3 import Folder, folder_at
from ssl_core.train.identity import differences
from ssl_core.train.saved_steps import CHECKPOINTS

FORMAT = 1
RUN_FILE, SUMMARY_FILE, PROBE_FILE = "run.json", "summary.json", "probe.json"
EXPORT, INIT = "export", "init"  # folders with an encoder: the trained one, and the one that training started from
State = Literal["new", "running", "interrupted", "trained", "finished"]


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What `run.json` holds."""

    name: str
    identity: Mapping[str, Any]
    config: Mapping[str, Any]
    state: State = "new"
    attempts: int = 0
    device: Literal["cpu", "gpu"] | None = None  # what a worker has one of; kept when all GPUs are gone for a while
    mlflow_run: str | None = None
    tracking_uri: str | None = None
    copied: bool = True  # False: MLflow may not have all of it
    training: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] | None = None  # `pipelines.provenance`, of the last command
    # `step` and `reason` of each attempt that lost a worker
    failures: Sequence[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])


class RunFolder:
    """`<storage>/<name>`, opened by the driver."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        self.path, self.record = path, record

    @classmethod
    def open(cls, storage: str, name: str, *, identity: Mapping[str, Any], config: Mapping[str, Any]) -> "RunFolder":
        """A new run or, where the folder holds one of the same identity, that one; nothing is written yet.

        Raises:
            UserError: a name that is no file name, or a run of another identity.
        """
        if not name or "/" in name or name.startswith("."):
            raise UserError(f"name={name} cannot be a folder: use letters, digits, - and _")
        path = local_path(storage).resolve() / name
        identity = cast(dict[str, Any], json.loads(json.dumps(identity)))  # tuples become lists, as in the file
        if not (path / RUN_FILE).exists():
            return cls(path, RunRecord(name=name, identity=identity, config=config))
        record = read_record(path)
        changed = differences(record.identity, identity)
        if changed:
            raise UserError(
                f"run {name} in {storage} was made with another configuration: {'; '.join(changed[:3])}; use another "
                "name (init=<run> starts from its weights) or the same values"
            )
        return cls(path, replace(record, config=config))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.record.state == "finished" and (self.path / SUMMARY_FILE).exists()

    def update(self, **changes: Any) -> None:
        """Change the record and write it."""
        self.record = replace(self.record, **changes)
        self.path.mkdir(parents=True, exist_ok=True)
        publish_bytes(
            self.path / RUN_FILE, (json.dumps({"format": FORMAT, **vars(self.record)}, indent=2) + "\n").encode()
        )

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, the last file of a run."""
        summary = {"state": "finished", **summary}
        publish_bytes(self.path / SUMMARY_FILE, (json.dumps(summary, indent=2) + "\n").encode())
        self.update(state="finished")

    def summary(self) -> dict[str, Any]:
        """What `write_summary` wrote."""
        return cast(dict[str, Any], json.loads((self.path / SUMMARY_FILE).read_text(encoding="utf-8")))

    @contextmanager
    def locked(self) -> Generator[None]:
        """Within: no other driver on this machine works on the run; raises Unavailable where one does."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Unavailable(
                    f"run {self.record.name} is in progress in another process: wait for it or stop it"
                ) from error
            yield
        finally:
            os.close(descriptor)


def checkpoint_folder(checkpoints: str | None, run: Path) -> Folder:
    """Where the checkpoints of the run in the folder `run` are: `<checkpoints>/<name>`, or in that folder.

    Raises:
        UserError: `checkpoints` is neither a folder nor a bucket.
    """
    return run / CHECKPOINTS if checkpoints is None else folder_at(checkpoints) / run.name


def read_record(path: Path) -> RunRecord:
    """The record of a run's folder; raises UserError where there is none."""
    try:
        content = cast(dict[str, Any], json.loads((path / RUN_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(
            f"there is no run in {path}: python -m pipelines.runs lists the runs of a storage folder"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path / RUN_FILE} cannot be read: {error}") from error
    try:
        if content.pop("format", None) != FORMAT:
            raise UserError(f"{path / RUN_FILE} is of another format version")
        return RunRecord(**content)
    except (AttributeError, TypeError) as error:
        raise UserError(f"{path / RUN_FILE} is not the record of a run: {error}") from error


def find_run(run: str, storage: str) -> Path:
    """The folder of a run given as a path or as a name below `storage`; raises UserError where there is none."""
    for path in (local_path(run), local_path(storage) / run):
        if (path / RUN_FILE).exists():
            return path
    raise UserError(
        f"there is no run {run} (neither as a folder nor below {storage}): python -m pipelines.runs lists them"
    )
