"""A run stopped and killed on its way is the undisturbed run: weights to the bit, every step once in the audit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from gloo_pool import GlooPool, TaskFailed
from tiny_runs import GLOBAL_BATCH, SHARD_SAMPLES, STEPS_PER_EPOCH, TOTAL_STEPS, TinyRun, build, tiny_run

from ssl_core.collectives import Collectives
from ssl_core.data.quarantine import Quarantine
from ssl_core.methods import METHODS
from ssl_core.train.context import InProcessContext
from ssl_core.train.loop import LoopConfig, LoopResult, train
from ssl_core.train.records import join_parts
from ssl_core.train.saved_steps import SavedStep, saved_steps
from ssl_core.train.saver import SaveConfig
from ssl_core.train.step import Precision

pytestmark = pytest.mark.slow
CONFIG = LoopConfig(
    total_steps=TOTAL_STEPS,
    steps_per_epoch=STEPS_PER_EPOCH,
    global_batch=GLOBAL_BATCH,
    save=SaveConfig(every_steps=3),
    log_every=1,
    audit=True,
)


class Killed(RuntimeError):
    """What stands here for a kill: nothing after it is done."""


@dataclass(frozen=True, kw_only=True)
class Interrupted(InProcessContext):
    """Asks to stop, or kills, in the step that is the n-th of the attempt."""

    stop_in: int | None = None
    kill_in: int | None = None
    asked: list[None] = field(default_factory=list[None])

    def should_stop(self) -> bool:
        self.asked.append(None)
        if len(self.asked) == self.kill_in:
            raise Killed
        return len(self.asked) == self.stop_in


def attempt(
    collectives: Collectives,
    run: TinyRun,
    folder: Path,
    number: int,
    interruption: dict[str, Any],
    precision: Precision = "fp32",
) -> LoopResult:
    step, loader = build(run, collectives, precision=precision)
    context = Interrupted(folder=folder, attempt=number, collectives=collectives, **interruption)
    return train(step, loader, Quarantine(int(SHARD_SAMPLES.sum())), CONFIG, context)


def saved(folder: Path) -> list[SavedStep]:
    return saved_steps(folder / "checkpoints")


def final_files(folder: Path) -> list[bytes]:
    last = folder / "checkpoints" / saved(folder)[0].name
    assert saved(folder)[0].step == TOTAL_STEPS
    return [(last / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]


def without_clock(folder: Path) -> list[dict[str, Any]]:
    clock = ("time", "images_per_second", "data_wait")
    return [{key: value for key, value in line.items() if key not in clock} for line in join_parts(folder, "metrics")]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_a_disturbed_run_is_the_undisturbed_one(pool: GlooPool, tmp_path: Path, name: str, world: int) -> None:
    run, whole, disturbed = tiny_run(name), tmp_path / "whole", tmp_path / "disturbed"
    assert [result.finished for result in pool.run(world, attempt, run, whole, 1, {})] == [True] * world

    with pytest.raises(TaskFailed, match="Killed"):
        pool.run(world, attempt, run, disturbed, 1, {"kill_in": 5})
    assert [one.step for one in saved(disturbed)] == [3]
    stopped = pool.run(world, attempt, run, disturbed, 2, {"stop_in": 1})  # heard while the second is under way
    assert [(result.finished, result.steps) for result in stopped] == [(False, 5)] * world
    finished = pool.run(world, attempt, run, disturbed, 3, {})
    assert [(result.finished, result.steps) for result in finished] == [(True, TOTAL_STEPS)] * world

    assert final_files(disturbed) == final_files(whole)
    audit = join_parts(disturbed, "audit")
    assert [line["step"] for line in audit] == list(range(TOTAL_STEPS))
    assert audit == join_parts(whole, "audit")
    seen = [position for line in audit[:STEPS_PER_EPOCH] for position in line["ids"]]
    assert len(set(seen)) == len(seen) == STEPS_PER_EPOCH * GLOBAL_BATCH
    assert [line["step"] for line in without_clock(disturbed)] == list(range(1, TOTAL_STEPS + 1))
    assert without_clock(disturbed) == without_clock(whole)


@pytest.mark.parametrize("name", METHODS)
def test_workers_may_change_between_attempts(pool: GlooPool, tmp_path: Path, name: str) -> None:
    run = tiny_run(name)
    pool.run(2, attempt, run, tmp_path / "whole", 1, {}, "fp64")
    pool.run(3, attempt, run, tmp_path / "changed", 1, {"stop_in": 3}, "fp64")
    pool.run(1, attempt, run, tmp_path / "changed", 2, {}, "fp64")
    audits = [join_parts(tmp_path / folder, "audit") for folder in ("whole", "changed")]
    for whole, changed in zip(*audits, strict=True):
        assert (whole["step"], whole["ids"], whole["views"]) == (changed["step"], changed["ids"], changed["views"])
        assert float.fromhex(changed["loss"]) == pytest.approx(float.fromhex(whole["loss"]), rel=1e-9)


def unshared(collectives: Collectives, run: TinyRun, folder: Path) -> None:
    attempt(collectives, run, folder / str(collectives.rank), 2, {})


def test_workers_that_see_different_checkpoints_do_not_start(pool: GlooPool, tmp_path: Path) -> None:
    run = tiny_run("simclr")
    pool.run(1, attempt, run, tmp_path / "0", 1, {"stop_in": 1})
    with pytest.raises(TaskFailed, match=r"workers found checkpoints of different steps \[2, 0\]"):
        pool.run(2, unshared, run, tmp_path)
