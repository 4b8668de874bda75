"""The step: what it changes and when, what it is given, how chunks and precisions go, what it refuses to keep."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_engine import GLOBAL_BATCH, TOTAL_STEPS, Engine, make_engine
from torch import Tensor

from ssl_core.errors import Resumable
from ssl_core.optim import OptimConfig, learning_rate
from ssl_core.train.step import NonFiniteLoss


def state(engine: Engine) -> dict[str, Tensor]:
    everything = {**engine.step.module.state_dict(), **engine.step.optimizer_state()}
    return {name: one.clone() for name, one in everything.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_first_step_is_plain_gradient_descent(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, precision="fp64", mean=(0.3,), std=(0.2,))
    before = state(engine)
    batch = engine.loader.batch(0)
    result = engine.step(batch, signals=(2.0, 0.5))

    x = torch.from_numpy(batch.groups["views"].reshape(GLOBAL_BATCH, 4)).double()
    x = (x / 255 - 0.3) / 0.2
    weight = before["encoder.backbone.1.weight"].requires_grad_()
    y = x @ weight.T + before["encoder.backbone.1.bias"]
    lanes = y.view(2, GLOBAL_BATCH // 2, 3)
    centred = lanes - lanes.mean(1, keepdim=True)
    z = (centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()).view(GLOBAL_BATCH, 3)
    loss = ((z - 1) ** 2).sum() / GLOBAL_BATCH
    (gradient,) = torch.autograd.grad(loss, weight)
    rate = learning_rate(OptimConfig(base_rate=3.0), step=0, total_steps=TOTAL_STEPS, global_batch=GLOBAL_BATCH)

    assert result.loss == pytest.approx(loss.item(), rel=1e-12)
    assert result.signals == (2.0, 0.5)
    after = state(engine)
    decayed = gradient + 1e-6 * weight
    assert torch.allclose(after["encoder.backbone.1.weight"], weight - rate * decayed, rtol=1e-10)
    variance = lanes.var(1, unbiased=True).mean(0)
    assert torch.allclose(after["encoder.backbone.2.running_mean"], 0.1 * lanes.mean((0, 1)), rtol=1e-10)
    assert torch.allclose(after["encoder.backbone.2.running_var"], 0.9 + 0.1 * variance, rtol=1e-10)
    assert torch.allclose(after["centre"], 0.1 * z.mean(0), rtol=1e-10)
    parameters = list(engine.step.module.parameters())
    norm = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm()
    assert result.gradient_norm == pytest.approx(norm.item(), rel=1e-12)
    assert engine.step.rate(0) == rate


@pytest.mark.parametrize("micro_batch", [4, 1, 8, 100])
def test_chunks_change_nothing(tmp_path: Path, micro_batch: int) -> None:
    whole, chunked = (
        make_engine(tmp_path, precision="fp64"),
        make_engine(tmp_path, precision="fp64", micro_batch=micro_batch),
    )
    for batch in whole.loader.stream(0, 3):
        assert whole.step(batch).loss == pytest.approx(chunked.step(batch).loss, rel=1e-12)
    expected = state(whole)
    for name, found in state(chunked).items():
        assert torch.allclose(found, expected[name], rtol=1e-10, atol=1e-14), name


def test_a_step_repeated_is_equal_to_the_bit(tmp_path: Path) -> None:
    first, second = make_engine(tmp_path), make_engine(tmp_path)
    for batch in first.loader.stream(0, 3):
        assert first.step(batch) == second.step(batch)
    assert same(state(first), state(second))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_of_a_step_without_a_finite_loss_is_kept(tmp_path: Path, bad: float) -> None:
    engine = make_engine(tmp_path)
    engine.step(engine.loader.batch(0))
    engine.method.centre.fill_(bad)
    before = state(engine)
    batch = engine.loader.batch(1)
    with pytest.raises(NonFiniteLoss, match=rf"step 1 is {bad}.*{batch.positions[0, 0]}") as stopped:
        engine.step(batch)
    assert isinstance(stopped.value, Resumable)
    assert "\n" not in str(stopped.value)
    after = state(engine)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name].numpy(), after[name].numpy(), equal_nan=True) for name in before)


def test_hooks_know_the_step(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    for batch in engine.loader.stream(2, 5):
        engine.step(batch)
    assert engine.method.steps_begun == [2, 3, 4]


def test_precisions_are_close_and_keep_float32_state(tmp_path: Path) -> None:
    exact, half = make_engine(tmp_path, precision="fp64"), make_engine(tmp_path, precision="bf16")
    batch = exact.loader.batch(0)
    assert half.step(batch).loss == pytest.approx(exact.step(batch).loss, rel=0.02)
    assert {one.dtype for one in state(half).values()} == {torch.float32}
    assert {one.dtype for one in state(exact).values()} == {torch.float64}


def test_optimiser_state_is_named_by_parameter(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    assert engine.step.optimizer_state() == {}
    engine.step(engine.loader.batch(0))
    names = {name for name, _ in engine.step.module.named_parameters()}
    assert set(engine.step.optimizer_state()) == {f"{name}/momentum_buffer" for name in names}
