"""The step: what it changes and when, what it is given, how chunks and precisions go, what it refuses to keep."""

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tiny_engine import GLOBAL_BATCH, TOTAL_STEPS, Engine, Linear, make_engine
from torch import Tensor

from ssl_core.collectives import Collectives
from ssl_core.errors import UserError
from ssl_core.nn.lane_batch_norm import lane_batch_norms
from ssl_core.optim import OptimConfig, learning_rate
from ssl_core.train.gradients import FlatGradients
from ssl_core.train.step import why_not_compiled


def state(engine: Engine) -> dict[str, Tensor]:
    everything = {**engine.step.module.state_dict(), **engine.step.optimizer_state()}
    return {name: one.clone() for name, one in everything.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_first_step_is_plain_gradient_descent(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, precision="fp64", mean=(0.3,), std=(0.2,))
    before = state(engine)
    batch = engine.loader.batch(0)
    result = engine.step(batch, signals=(2.0, 0.5)).result()

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
        assert whole.step(batch).result().loss == pytest.approx(chunked.step(batch).result().loss, rel=1e-12)
    expected = state(whole)
    for name, found in state(chunked).items():
        assert torch.allclose(found, expected[name], rtol=1e-10, atol=1e-14), name


def test_a_step_repeated_is_equal_to_the_bit(tmp_path: Path) -> None:
    first, second = make_engine(tmp_path), make_engine(tmp_path)
    for batch in first.loader.stream(0, 3):
        assert first.step(batch).result() == second.step(batch).result()
    assert same(state(first), state(second))


OPTIMISERS: list[Literal["lars", "sgd", "adamw"]] = ["lars", "sgd", "adamw"]


def unchanged(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[name].numpy(), other[name].numpy(), equal_nan=True) for name in one
    )


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_of_a_step_without_a_finite_loss_is_kept_nor_of_the_next(
    tmp_path: Path, bad: float, optimiser: Literal["lars", "sgd", "adamw"]
) -> None:
    engine = make_engine(tmp_path, optim=OptimConfig(name=optimiser, base_rate=0.1))
    engine.step(engine.loader.batch(0))
    good = engine.method.centre.clone()
    engine.method.centre.fill_(bad)
    before = state(engine)
    batch = engine.loader.batch(1)
    pending = engine.step(batch)
    assert unchanged(before, state(engine))
    result = pending.result()
    assert not result.finite
    assert re.match(rf"the loss at step 1 is {bad}.*{batch.positions[0, 0]}", pending.trouble(result))
    engine.method.centre.copy_(good)  # the next step, which is under way by then, has a finite loss
    before = state(engine)
    engine.step(engine.loader.batch(2)).result()
    assert unchanged(before, state(engine))


def test_a_gradient_that_is_not_finite_is_not_kept_either(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    before = state(engine)

    def spoil() -> None:
        gradients.buffer[0] = torch.inf

    gradients: FlatGradients = engine.step._gradients  # pyright: ignore[reportPrivateUsage] (to spoil it)
    gradients.sum_over_workers_ = spoil
    pending = engine.step(engine.loader.batch(0))
    assert pending.trouble(pending.result()).startswith("the gradient's norm at step 0 is inf")
    after = state(engine)
    assert all(torch.equal(after[name], one) for name, one in before.items())


def test_hooks_know_the_step(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    for batch in engine.loader.stream(2, 5):
        engine.step(batch)
    assert engine.method.steps_begun == [2, 3, 4]


def test_precisions_are_close_and_keep_float32_state(tmp_path: Path) -> None:
    exact, half = make_engine(tmp_path, precision="fp64"), make_engine(tmp_path, precision="bf16")
    batch = exact.loader.batch(0)
    assert half.step(batch).result().loss == pytest.approx(exact.step(batch).result().loss, rel=0.02)
    assert {one.dtype for one in state(half).values()} == {torch.float32}
    assert {one.dtype for one in state(exact).values()} == {torch.float64}


def test_optimiser_state_is_named_by_parameter(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    assert engine.step.optimizer_state() == {}
    engine.step(engine.loader.batch(0))
    names = {name for name, _ in engine.step.module.named_parameters()}
    assert set(engine.step.optimizer_state()) == {f"{name}/momentum_buffer" for name in names}


def test_a_large_gradient_is_scaled_down_to_the_norm_that_is_allowed(tmp_path: Path) -> None:
    free, clipped, loose = (
        make_engine(
            tmp_path,
            precision="fp64",
            optim=OptimConfig(name="sgd", base_rate=1.0, weight_decay=0.0, clip_norm=largest),
        )
        for largest in (None, 0.01, 1e6)
    )
    before = flat_weights(free)
    batch = free.loader.batch(0)
    norm = free.step(batch).result().gradient_norm
    assert norm > 0.01
    assert clipped.step(batch).result().gradient_norm == norm
    loose.step(batch)
    assert torch.equal(flat_weights(loose), flat_weights(free))
    moved, expected = flat_weights(clipped) - before, (flat_weights(free) - before) * (0.01 / norm)
    torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-12)


def two_layers(*, coarse: bool) -> dict[str, str]:
    """As timm's models say which layers they have."""
    assert not coarse
    return {"stem": r"^1", "blocks": r"^(\d)"}


def test_lower_layers_are_moved_less_by_layer_decay(tmp_path: Path) -> None:
    def moved(layer_decay: float | None) -> dict[str, Tensor]:
        method = Linear()
        object.__setattr__(method.encoder.backbone, "group_matcher", two_layers)
        optim = OptimConfig(name="sgd", base_rate=1.0, weight_decay=0.0, layer_decay=layer_decay)
        engine = make_engine(tmp_path, method=method, precision="fp64", optim=optim)
        before = {name: p.detach().clone() for name, p in engine.step.module.named_parameters()}
        engine.step(engine.loader.batch(0))
        return {name: p.detach() - before[name] for name, p in engine.step.module.named_parameters()}

    whole, decayed = moved(None), moved(0.25)
    for name, move in whole.items():
        assert move.abs().max() > 0
        factor = 0.0625 if name.startswith("encoder.backbone.1.") else 0.25
        torch.testing.assert_close(decayed[name], move * factor, rtol=1e-9, atol=1e-15)


def flat_weights(engine: Engine) -> Tensor:
    return torch.cat([p.detach().flatten() for p in engine.step.module.parameters()])


def test_batch_norm_over_the_global_batch_cannot_be_cut_into_micro_batches(tmp_path: Path) -> None:
    method = Linear()
    for norm in lane_batch_norms(method):
        norm.everyone = Collectives()
    with pytest.raises(UserError, match="no micro-batches"):
        make_engine(tmp_path, method=method, micro_batch=4)


def test_a_machine_that_cannot_compile_says_why_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    assert why_not_compiled(torch.device("cpu"), Collectives()) == "No working C++ compiler found"


@pytest.mark.slow
def test_a_compiled_step_has_the_loss_of_an_eager_one(tmp_path: Path) -> None:
    if reason := why_not_compiled(torch.device("cpu"), Collectives()):
        pytest.skip(f"torch.compile does not work here: {reason}")
    eager, compiled = make_engine(tmp_path), make_engine(tmp_path, compile=True)
    for batch in eager.loader.stream(0, 3):
        loss = compiled.step(batch).result().loss
        assert loss == pytest.approx(eager.step(batch).result().loss, rel=1e-3)
    names = eager.step.module.state_dict().keys()
    assert compiled.step.module.state_dict().keys() == names
    found, expected = flat_weights(compiled), flat_weights(eager)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
