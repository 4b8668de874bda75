"""What a checkpoint holds is all there is: a method put back from its files goes on to the bit as if never stopped."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from tiny_runs import build, tiny_run
from torch import Tensor

from ssl_core.collectives import Collectives
from ssl_core.methods import METHODS
from ssl_core.train.checkpoint import Checkpoint, CheckpointStore
from ssl_core.train.step import Precision, TrainStep


def everything(step: TrainStep) -> dict[str, Tensor]:
    return {**step.module.state_dict(), **step.optimizer_state()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name])
        and (one[name].dtype, one[name].stride()) == (other[name].dtype, other[name].stride())
        for name in one
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_put_back_from_files_goes_on_to_the_bit(
    tmp_path: Path, name: str, precision: Precision, device: str
) -> None:
    step, loader = build(tiny_run(name), Collectives(), precision=precision, device=device)
    batches = list(loader.stream(0, 6))
    for batch in batches[:3]:
        step(batch)
    model, optimizer = step.module.state_dict(), step.optimizer_state()
    CheckpointStore(tmp_path).save(Checkpoint(step=3, model=model, optimizer=optimizer, state={}))
    resumed, _ = build(tiny_run(name), Collectives(), precision=precision, device=device)
    assert not same(everything(resumed), everything(step))
    found, _ = CheckpointStore(tmp_path).newest_readable()
    assert found is not None
    resumed.module.load_state_dict(found.model)
    resumed.load_optimizer_state(found.optimizer)
    assert same(everything(resumed), everything(step))
    for batch in batches[3:]:
        assert step(batch).result() == resumed(batch).result()
    assert same(everything(resumed), everything(step))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_other_optimisers_are_put_back_too(kind: Literal["adamw", "sgd"]) -> None:
    run = tiny_run("simclr")
    run = replace(run, optim=replace(run.optim, name=kind, base_rate=0.01))
    step, loader = build(run, Collectives(), precision="fp32")
    batches = list(loader.stream(0, 4))
    for batch in batches[:2]:
        step(batch)
    resumed, _ = build(run, Collectives(), precision="fp32")
    resumed.module.load_state_dict(step.module.state_dict())
    resumed.load_optimizer_state({name: one.clone().contiguous() for name, one in step.optimizer_state().items()})
    for batch in batches[2:]:
        assert step(batch).result() == resumed(batch).result()
    assert same(everything(resumed), everything(step))
