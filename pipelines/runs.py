"""The runs of a storage folder: what state they are in, and whether the same command would continue them.

python -m pipelines.runs storage=runs                    list them
python -m pipelines.runs storage=runs delete=first       delete its folder and checkpoints (not its copy in MLflow)
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from pipelines.config import compose, typed
from pipelines.console import run_command, say
from pipelines.run_folder import RUN_FILE, RunFolder, RunRecord, checkpoint_folder, find_run, read_record
from ssl_core.errors import Resumable, UserError
from ssl_core.storage.files import files_at
from ssl_core.storage.local import local_path
from ssl_core.train.saved_steps import saved_steps


@dataclass(frozen=True, kw_only=True)
class RunsConfig:
    """All keys of `runs`."""

    storage: str = "runs"
    delete: str | None = None


def main(overrides: list[str]) -> None:
    """List the runs, or delete one."""
    config = typed(RunsConfig, compose("runs", overrides))
    storage = local_path(config.storage)
    if config.delete is not None:
        path = find_run(config.delete, config.storage)
        record = read_record(path)
        with RunFolder(path, record).locked():
            checkpoints = files_at(checkpoint_folder(record.config.get("checkpoints"), path))
            checkpoints.remove(checkpoints.names())
            shutil.rmtree(path)
        say(f"deleted {path}")
        return
    if not storage.is_dir():
        raise UserError(f"storage={config.storage} is not a folder: name the storage folder of your runs")
    records = [(path.parent, read_record(path.parent)) for path in sorted(storage.glob(f"*/{RUN_FILE}"))]
    if not records:
        say(f"no runs in {storage}")
        return
    width = max(len(record.name) for _, record in records)
    say(f"{'name':<{width}}  {'state':<12}{'steps':>15}  {'attempts':>8}  next")
    for path, record in records:
        sweep = "sweep" in record.identity
        steps = "a sweep" if sweep else f"{_steps_done(path, record)}/{record.identity['train']['steps']}"
        done = f"its runs: storage={path}" if sweep else "register or probe it"
        command = "tune" if sweep else "pretrain"
        following = done if record.state == "finished" else f"the same {command} command continues it"
        state = _state(path, record)
        say(f"{record.name:<{width}}  {state:<12}{steps:>15}  {record.attempts:>8}  {following}")


def _state(path: Path, record: RunRecord) -> str:
    """The recorded state; a run that says it is running while nobody holds it was killed."""
    if record.state != "running":
        return record.state
    try:
        with RunFolder(path, record).locked():
            return "interrupted"
    except UserError:
        return "running"


def _steps_done(path: Path, record: RunRecord) -> str:
    """The newest complete checkpoint's step; "?" where its bucket does not answer."""
    try:
        saved = saved_steps(checkpoint_folder(record.config.get("checkpoints"), path))
    except (UserError, Resumable):
        return "?"
    return str(saved[0].step if saved else 0)


if __name__ == "__main__":
    run_command("runs", __doc__, main)
