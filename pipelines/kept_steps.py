"""The method of a run as it was at a step whose checkpoint is kept."""

from pathlib import Path

from pipelines.plan import Plan, make_plan
from pipelines.run_folder import checkpoint_folder, read_record
from ssl_core.errors import UserError
from ssl_core.export import save_encoder
from ssl_core.methods.base import Method, as_module
from ssl_core.nn.lane_batch_norm import use_lane_batch_norm
from ssl_core.train.checkpoint import Checkpoint, CheckpointStore


def method_at(plan: Plan, checkpoint: Checkpoint) -> Method:
    """The method with a checkpoint's weights, in eval mode."""
    method = plan.build_method(plan.random_encoder())
    module = as_module(method)
    use_lane_batch_norm(module)
    module.load_state_dict(checkpoint.model)
    module.eval()
    return method


def newest_checkpoint(plan: Plan, run: Path) -> Checkpoint | None:
    """The newest checkpoint of the run in the folder `run` that can be read."""
    return CheckpointStore(checkpoint_folder(plan.config.checkpoints, run)).newest_readable()[0]


def export_step(run: Path, step: int, folder: Path) -> Path:
    """Export the encoder as it was after `step` steps.

    Args:
        run: the run's folder.
        step: one whose checkpoint is kept.
        folder: written.

    Returns:
        `folder`.

    Raises:
        UserError: that checkpoint is not there, or damaged; the message names those that are.
    """
    plan = make_plan(read_record(run).config)
    store = CheckpointStore(checkpoint_folder(plan.config.checkpoints, run))
    saved = store.saved()
    found = next((one for one in saved if one.step == step), None)
    if found is None:
        kept = ", ".join(str(one.step) for one in reversed(saved)) or "none"
        raise UserError(f"run {run.name} keeps no checkpoint of step {step}: there are {kept}")
    save_encoder(folder, method_at(plan, store.load(found)).encoder, plan.export)
    return folder
