"""The gradient law: for every method, number of workers and micro-batch, the gradient is that of one process on it all.

Real processes with uneven lanes (8 over 3) and unequal data; one process on the whole batch in one piece is the truth.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tiny_runs
import torch
from gloo_pool import GlooPool
from tiny_runs import GLOBAL_BATCH, NUM_LANES, TinyRun, build, tiny_run
from torch import Tensor, nn

from ssl_core.collectives import Collectives
from ssl_core.methods import METHODS
from ssl_core.methods.mae import MAE
from ssl_core.train import gradients
from ssl_core.train.gradients import FlatGradients
from ssl_core.train.step import Precision, TrainStep
from ssl_core.types import ViewBatch

pytestmark = pytest.mark.slow
Vector = np.ndarray[Any, np.dtype[np.float64]]
STEPS = 4
LANE = GLOBAL_BATCH // NUM_LANES


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is compared: after one step the whole gradient, after some the whole state."""

    losses: Vector
    gradient: Vector
    state: Vector


def flat_state(step: TrainStep) -> Vector:
    tensors = [one for name, one in step.module.state_dict().items() if not name.endswith("num_batches_tracked")]
    return np.concatenate([one.double().cpu().numpy().ravel() for one in tensors])


def train(
    collectives: Collectives,
    run: TinyRun,
    precision: Precision,
    micro_batch: int | None,
    global_batch_norm: bool = False,
    device: str = "cpu",
) -> Trained:
    with patch.object(gradients, "_BUCKET_BYTES", 4096):  # many buckets, of one parameter and of several
        step, loader = build(
            run,
            collectives,
            precision=precision,
            micro_batch=micro_batch,
            global_batch_norm=global_batch_norm,
            device=device,
        )
    parameters = [p for p in step.module.parameters() if p.requires_grad]
    losses: list[float] = []
    gradient = np.zeros(0)
    for batch in loader.stream(0, STEPS):
        losses.append(step(batch).result().loss)
        if batch.step == 0:
            gradient = np.concatenate([p.grad.double().cpu().numpy().ravel() for p in parameters if p.grad is not None])
    state = flat_state(step)
    return Trained(losses=np.asarray(losses), gradient=gradient, state=state)


true_sum = Collectives.sum_
true_sum_over_workers = FlatGradients.sum_over_workers_


def sum_but_for_rows(collectives: Collectives, x: Tensor) -> Tensor:
    return x if x.ndim == 2 else true_sum(collectives, x)


class Nothing:
    def wait(self) -> None:
        pass


def no_sum(collectives: Collectives, x: Tensor) -> Nothing:
    return Nothing()


def mean(flat: FlatGradients) -> None:
    true_sum_over_workers(flat)
    flat.buffer.div_(2)


def leave_native(method: nn.Module, everyone: Collectives | None) -> nn.Module:
    return method


true_mask_keys = MAE.mask_keys


def keys_by_row(method: MAE, batch: ViewBatch) -> Any:
    return true_mask_keys(method, replace(batch, draws=torch.arange(len(batch.draws))))


FAULTS: dict[str, tuple[str, Any, str, Any]] = {
    "workers keep their own gradients": ("simclr", Collectives, "start_sum_", no_sum),
    "gradients are averaged over workers": ("simclr", FlatGradients, "sum_over_workers_", mean),
    "BatchNorm takes a worker's lanes together": ("simclr", tiny_runs, "use_lane_batch_norm", leave_native),
    "gradients of others' rows are dropped": ("simclr", Collectives, "sum_", sum_but_for_rows),
    "masks depend on the worker": ("mae", MAE, "mask_keys", keys_by_row),
}


def train_with_fault(collectives: Collectives, run: TinyRun, fault: str) -> Trained:
    with patch.object(*FAULTS[fault][1:]):
        return train(collectives, run, "fp64", None)


def relative_error(found: Vector, expected: Vector) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def alone() -> Callable[[str, Precision], Trained]:
    known: dict[tuple[str, Precision], Trained] = {}

    def make(name: str, precision: Precision) -> Trained:
        if (name, precision) not in known:
            known[name, precision] = train(Collectives(), tiny_run(name), precision, None)
        return known[name, precision]

    return make


@pytest.mark.parametrize(
    ("world", "micro_batch"),
    [(1, LANE), (1, 3 * LANE), (2, None), (2, 2 * LANE), (3, None), (3, LANE), (3, 2 * LANE), (4, None)],
)
@pytest.mark.parametrize("name", METHODS)
def test_gradient_and_weights_are_those_of_one_process(
    pool: GlooPool, alone: Callable[[str, Precision], Trained], name: str, world: int, micro_batch: int | None
) -> None:
    expected = alone(name, "fp64")
    for found in pool.run(world, train, tiny_run(name), "fp64", micro_batch):
        assert relative_error(found.gradient, expected.gradient) <= 1e-9
        assert relative_error(found.losses, expected.losses) <= 1e-9
        assert relative_error(found.state, expected.state) <= 1e-9


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("name", ["simclr", "moco"])
def test_batch_norm_over_the_global_batch_too(pool: GlooPool, name: str, world: int) -> None:
    expected = train(Collectives(), tiny_run(name), "fp64", None, global_batch_norm=True)
    for found in pool.run(world, train, tiny_run(name), "fp64", None, True):
        assert relative_error(found.gradient, expected.gradient) <= 1e-9
        assert relative_error(found.losses, expected.losses) <= 1e-9
        assert relative_error(found.state, expected.state) <= 1e-9


@pytest.mark.parametrize("micro_batch", [None, 2 * LANE])
@pytest.mark.parametrize("name", METHODS)
def test_activations_computed_again_change_nothing(
    alone: Callable[[str, Precision], Trained], name: str, micro_batch: int | None
) -> None:
    expected, calls = alone(name, "fp64"), list[int]()
    step, loader = build(tiny_run(name), Collectives(), micro_batch=micro_batch, checkpointed=True)
    blocks: Any = next(one for one in step.encoder.modules() if hasattr(one, "grad_checkpointing"))
    inner = blocks.layer2[0] if hasattr(blocks, "layer2") else blocks.blocks[0]

    def count(module: nn.Module, inputs: Any) -> None:
        calls.append(1)

    inner.register_forward_pre_hook(count)  # backward breaks its second forward off once it has what it needs
    losses = [step(batch).result().loss for batch in loader.stream(0, STEPS)]
    assert len(calls) > STEPS * (1 if micro_batch is None else 4)  # again in backward
    assert relative_error(np.asarray(losses), expected.losses) <= 1e-9
    assert relative_error(flat_state(step), expected.state) <= 1e-9


@pytest.mark.parametrize("name", METHODS)
def test_float32_gradient_of_the_first_step(
    pool: GlooPool, alone: Callable[[str, Precision], Trained], name: str
) -> None:
    expected = alone(name, "fp32")
    for found in pool.run(3, train, tiny_run(name), "fp32", 2 * LANE):
        assert relative_error(found.losses[:1], expected.losses[:1]) <= 1e-5
        assert relative_error(found.gradient, expected.gradient) <= 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize(("micro_batch", "global_batch_norm"), [(None, False), (2 * LANE, False), (None, True)])
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_takes_the_same_steps(name: str, micro_batch: int | None, global_batch_norm: bool) -> None:
    run = tiny_run(name)
    expected = train(Collectives(), run, "fp64", None, global_batch_norm)
    found = train(Collectives(), run, "fp64", micro_batch, global_batch_norm, device="cuda")
    assert relative_error(found.gradient, expected.gradient) <= 1e-9
    assert relative_error(found.losses, expected.losses) <= 1e-9
    assert relative_error(found.state, expected.state) <= 1e-9


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_float32_gradient_of_the_first_step_on_a_gpu(alone: Callable[[str, Precision], Trained], name: str) -> None:
    expected = alone(name, "fp64")
    found = train(Collectives(), tiny_run(name), "fp32", None, device="cuda")
    assert relative_error(found.losses[:1], expected.losses[:1]) <= 1e-5
    assert relative_error(found.gradient, expected.gradient) <= 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_workers_hold_the_same_state_to_the_bit(pool: GlooPool, name: str) -> None:
    first, *others = pool.run(3, train, tiny_run(name), "fp32", None)
    assert all(other.state.tobytes() == first.state.tobytes() for other in others)


@pytest.mark.parametrize("name", METHODS)
def test_steps_move_the_weights(alone: Callable[[str, Precision], Trained], name: str) -> None:
    start, _ = build(tiny_run(name), Collectives())
    assert relative_error(alone(name, "fp64").state, flat_state(start)) > 1e-3


@pytest.mark.parametrize("fault", FAULTS)
def test_the_law_sees_a_planted_fault(pool: GlooPool, alone: Callable[[str, Precision], Trained], fault: str) -> None:
    name = FAULTS[fault][0]
    expected = alone(name, "fp64")
    found = pool.run(2, train_with_fault, tiny_run(name), fault)[0]
    assert relative_error(found.gradient, expected.gradient) > 1e-3
    assert relative_error(found.state, expected.state) > 1e-6
