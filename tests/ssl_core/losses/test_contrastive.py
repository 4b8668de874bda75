"""Contrastive losses, values and gradients, against dense transcriptions of their equations in float64."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_core.losses import contrastive, info_nce, info_nce_partial, nt_xent, nt_xent_partial

TEMPERATURES = [0.01, 0.07, 0.5, 1.0]


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close_pairs(pairs: int, dim: int) -> tuple[Tensor, Tensor]:
    """Views that resemble each other, as after some training: at low temperatures the largest terms rule."""
    a = draws(pairs, dim)
    return a, a + 0.3 * draws(pairs, dim, seed=1)


def unit(x: Tensor) -> Tensor:
    return x / x.pow(2).sum(1, keepdim=True).sqrt()


def dense_nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """SimCLR's equation 1, term by term: ℓ(i) = −s[i, p(i)] + log Σ_{j≠i} exp s[i, j]."""
    z, pairs = unit(torch.cat([a, b])), len(a)
    terms: list[Tensor] = []
    for i in range(2 * pairs):
        s = (z @ z[i]) / temperature
        others = torch.cat([s[:i], s[i + 1 :]])
        largest = others.max().detach()
        terms.append(-s[(i + pairs) % (2 * pairs)] + largest + (others - largest).exp().sum().log())
    return torch.stack(terms).mean()


def dense_info_nce(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's equation 1, with the key in the place of k⁺ and the queue in that of the other keys."""
    q, k, queue = unit(q), unit(k), unit(queue)
    terms: list[Tensor] = []
    for i in range(len(q)):
        positive, negatives = (q[i] @ k[i]) / temperature, (queue @ q[i]) / temperature
        largest = torch.maximum(positive, negatives.max()).detach()
        total = (positive - largest).exp() + (negatives - largest).exp().sum()
        terms.append(-(positive - largest) + total.log())
    return torch.stack(terms).mean()


def same(found: Tensor, expected: Tensor, inputs: list[Tensor], *, rtol: float = 1e-10) -> bool:
    """Values and gradients agree, relative to the largest entry of each."""
    gradients = zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True)
    pairs = [(found.detach(), expected.detach()), *gradients]
    return all(float((one - other).abs().max()) <= rtol * float(other.abs().max()) for one, other in pairs)


@pytest.fixture(params=[1024, 5, 1], ids=["one tile", "tiles of a few rows", "tiles of one row"])
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(contrastive, "_TILE", request.param)
    return int(request.param)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_nt_xent_is_its_equation(temperature: float) -> None:
    a, b = (x.requires_grad_() for x in close_pairs(11, 5))
    assert same(nt_xent(a, b, temperature=temperature), dense_nt_xent(a, b, temperature), [a, b])


@pytest.mark.usefixtures("tile")
def test_nt_xent_is_differentiated_exactly() -> None:
    a, b = (x.requires_grad_() for x in close_pairs(4, 3))

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return 3 * nt_xent(a, b, temperature=0.2)

    assert torch.autograd.gradcheck(loss, (a, b))


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 24), max_size=4), temperature=st.sampled_from(TEMPERATURES))
def test_partial_sums_over_any_cut_of_the_rows_are_the_whole(cuts: list[int], temperature: float) -> None:
    rows = torch.cat(close_pairs(12, 4)).requires_grad_()
    positive = torch.arange(24).roll(12)
    bounds = [0, *sorted(cuts), 24]
    parts = [
        nt_xent_partial(rows, positive, own=slice(start, stop), temperature=temperature)
        for start, stop in pairwise(bounds)
    ]
    whole = dense_nt_xent(rows[:12], rows[12:], temperature) * 24
    assert same(torch.stack(parts).sum(), whole, [rows])


@pytest.mark.usefixtures("tile")
def test_rows_may_lie_in_any_order() -> None:
    rows = torch.cat(close_pairs(6, 4)).requires_grad_()
    order = torch.tensor([3, 9, 0, 1, 7, 6, 2, 4, 8, 10, 11, 5])
    place = order.argsort()
    positive = place[(order + 6) % 12]
    found = nt_xent_partial(rows[order], positive, own=slice(0, 12), temperature=0.3) / 12
    assert same(found, dense_nt_xent(rows[:6], rows[6:], 0.3), [rows])


def test_one_pair_has_no_one_to_be_told_from() -> None:
    a, b = close_pairs(1, 4)
    assert nt_xent(a, b, temperature=0.1).item() == pytest.approx(0, abs=1e-12)


def test_no_matrix_of_all_rows_by_all_rows_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    product = torch.Tensor.__matmul__

    def watched(one: Tensor, other: Tensor) -> Tensor:
        nonlocal largest
        result = product(one, other)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    monkeypatch.setattr(contrastive, "_TILE", 32)
    a, b = (x.requires_grad_() for x in close_pairs(100, 3))
    nt_xent(a, b, temperature=0.1).backward()
    assert 0 < largest <= 32**2


LOSSES = ["nt_xent", "info_nce"]


def computed(name: str, temperature: float, *rows: Tensor) -> Tensor:
    if name == "nt_xent":
        return nt_xent(rows[0], rows[1], temperature=temperature)
    return info_nce(rows[0], rows[1], rows[2], temperature=temperature)


def dense(name: str, temperature: float, *rows: Tensor) -> Tensor:
    return (
        dense_nt_xent(rows[0], rows[1], temperature)
        if name == "nt_xent"
        else dense_info_nce(rows[0], rows[1], rows[2], temperature)
    )


@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_sums_are_in_float32_whatever_the_rows_are(name: str, dtype: torch.dtype, autocast: bool) -> None:
    rows = [x.to(dtype).requires_grad_() for x in (*close_pairs(300, 8), draws(700, 8, seed=5))]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = computed(name, 0.05, *rows)
    found.backward()
    exact = [row.detach().double().requires_grad_() for row in rows]
    expected = dense(name, 0.05, *exact)
    expected.backward()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=2e-6)
    gradient, exact_gradient = rows[0].grad, exact[0].grad
    assert gradient is not None
    assert exact_gradient is not None
    assert gradient.dtype == dtype
    error = (gradient.double() - exact_gradient).abs().max() / exact_gradient.abs().max()
    assert error < {torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float32: 1e-5}[dtype]


@pytest.mark.parametrize("temperature", [0.01, 0.002])
@pytest.mark.parametrize("name", LOSSES)
def test_opposed_rows_at_low_temperatures_neither_overflow_nor_vanish(name: str, temperature: float) -> None:
    a = draws(9, 4)
    rows = [a, 0.1 * draws(9, 4, seed=1) - a, -a]  # positives opposed: exp s down to exp(−500)
    exact = [row.clone().requires_grad_() for row in rows]
    found = [row.float().requires_grad_() for row in rows]
    expected, loss = dense(name, temperature, *exact), computed(name, temperature, *found)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,), (exact_gradient,) = torch.autograd.grad(loss, found[:1]), torch.autograd.grad(expected, exact[:1])
    assert (gradient - exact_gradient).abs().max() <= 1e-3 * exact_gradient.abs().max()


@pytest.mark.parametrize("temperature", [0.0, -0.1, 0.001, float("nan")])
@pytest.mark.parametrize("name", LOSSES)
def test_a_temperature_whose_exponentials_overflow_is_refused(name: str, temperature: float) -> None:
    with pytest.raises(ValueError, match=f"temperature={temperature}: use at least 0.0017"):
        computed(name, temperature, *close_pairs(3, 4), draws(5, 4))


@pytest.mark.parametrize("name", LOSSES)
def test_float64_stays_float64(name: str) -> None:
    assert computed(name, 0.1, *close_pairs(3, 4), draws(5, 4)).dtype == torch.float64


@pytest.mark.parametrize("name", LOSSES)
def test_lengths_of_the_rows_do_not_matter(name: str) -> None:
    rows = [*close_pairs(5, 4), draws(7, 4, seed=2)]
    stretched = [row * torch.arange(1, len(row) + 1)[:, None] for row in rows]
    assert computed(name, 0.1, *stretched).item() == pytest.approx(computed(name, 0.1, *rows).item(), rel=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_info_nce_is_its_equation(temperature: float) -> None:
    q, k = close_pairs(6, 5)
    queue = draws(90, 5, seed=3)
    q.requires_grad_()
    found = info_nce(q, k, queue, temperature=temperature)
    assert same(found, dense_info_nce(q, k, queue, temperature), [q])


def test_info_nce_gives_no_gradient_to_keys_and_queue() -> None:
    q, k = (x.requires_grad_() for x in close_pairs(6, 5))
    queue = draws(17, 5, seed=3).requires_grad_()
    info_nce(q, k, queue, temperature=0.1).backward()
    gradients: list[Any] = [q.grad, k.grad, queue.grad]
    assert gradients[0].abs().max() > 0
    assert gradients[1:] == [None, None]


def test_info_nce_is_differentiated_exactly() -> None:
    q, k = close_pairs(4, 3)

    def loss(q: Tensor) -> Tensor:
        return info_nce(q, k, draws(5, 3, seed=2), temperature=0.2)

    assert torch.autograd.gradcheck(loss, (q.requires_grad_(),))


@pytest.mark.parametrize("tile", [1, 3, 1024])
@pytest.mark.parametrize("own_column", [False, True])
def test_info_nce_streams_what_the_equation_says(monkeypatch: pytest.MonkeyPatch, own_column: bool, tile: int) -> None:
    monkeypatch.setattr(contrastive, "_TILE", tile)
    torch.manual_seed(0)
    q = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    k, others = torch.randn(7, 5).double(), torch.randn(11, 5).double()
    column = torch.arange(2, 9) if own_column else None
    if own_column:
        others[2:9] = k
    dense_q = q.detach().clone().requires_grad_()
    unit = torch.nn.functional.normalize
    similarity = unit(dense_q) @ unit(others).T / 0.1
    positive = (unit(dense_q) * unit(k)).sum(1) / 0.1
    negatives = [[j for j in range(11) if not own_column or j != i + 2] for i in range(7)]
    dense = sum(
        torch.cat([positive[i : i + 1], similarity[i, negatives[i]]]).logsumexp(0) - positive[i] for i in range(7)
    )
    assert isinstance(dense, torch.Tensor)
    dense.backward()
    loss = info_nce_partial(q, unit(k), unit(others), temperature=0.1, positive_column=column)
    loss.backward()
    assert torch.allclose(loss, dense, rtol=1e-12)
    assert q.grad is not None
    assert dense_q.grad is not None
    assert torch.allclose(q.grad, dense_q.grad, rtol=1e-10, atol=1e-14)
