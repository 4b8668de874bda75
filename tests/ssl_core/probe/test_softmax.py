"""The optimum is that of the definition, found in few passes however badly scaled the features are."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ssl_core.probe import softmax
from ssl_core.probe.softmax import CurvatureBound, fit_softmax, logits


def problem(num_rows: int = 400, num_features: int = 12, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    """Correlated, centred features whose directions differ in variance by six orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(num_features, num_features, generator=generator) * torch.logspace(0, -3, num_features)
    x = torch.randn(num_rows, num_features, generator=generator) @ mixing.T
    x = (x - x.mean(0)) / x.std(0)
    y = (x @ torch.randn(num_features, num_classes, generator=generator)).argmax(1)
    noisy = torch.rand(num_rows, generator=generator) < 0.3
    return x, torch.where(noisy, torch.randint(0, num_classes, (num_rows,), generator=generator), y)


def loss(x: Tensor, y: Tensor, weights: Tensor, decay: float) -> Tensor:
    weights = weights.double()
    penalty = 0.5 * decay * weights[:, :-1].square().sum()
    return torch.nn.functional.cross_entropy(x.double() @ weights[:, :-1].T + weights[:, -1], y) + penalty


@pytest.mark.parametrize("decay", [1.0, 1e-2, 1e-4])
def test_the_optimum_is_scikit_learns(decay: float) -> None:
    x, y = problem()
    found = fit_softmax(x, y, start=torch.zeros(4, 13), decay=decay, curvature=CurvatureBound(x), tolerance=1e-6)
    model = LogisticRegression(C=1 / (decay * len(x)), tol=1e-10, max_iter=10_000).fit(x.double().numpy(), y.numpy())
    theirs = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    expected = loss(x, y, torch.cat([theirs[0], theirs[1][:, None]], 1), decay)
    assert abs(float(loss(x, y, found, decay) - expected)) < 1e-6
    torch.testing.assert_close(
        logits(x, found).softmax(1).double(), torch.from_numpy(model.predict_proba(x)), atol=2e-3, rtol=0
    )


def test_the_gradient_is_the_losses() -> None:
    x, y = problem(50)
    weights = torch.randn(4, 13, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    value = loss(x, y, weights, 0.3)
    value.backward()
    found_value, found = softmax._loss_and_gradient(x.double(), y, weights.detach(), 0.3)  # pyright: ignore[reportPrivateUsage] (its gradient is what is checked)
    assert abs(found_value - value.item()) < 1e-12
    assert weights.grad is not None
    torch.testing.assert_close(found, weights.grad, rtol=1e-10, atol=1e-12)


def test_chunks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem(50)
    weights = torch.randn(4, 13, generator=torch.Generator().manual_seed(1))
    whole = softmax._loss_and_gradient(x, y, weights, 0.3)  # pyright: ignore[reportPrivateUsage] (its gradient is what is checked)
    monkeypatch.setattr(softmax, "_LOGITS_A_CHUNK", 4 * 7)
    chunked = softmax._loss_and_gradient(x, y, weights, 0.3)  # pyright: ignore[reportPrivateUsage] (its gradient is what is checked)
    assert abs(whole[0] - chunked[0]) < 1e-6
    torch.testing.assert_close(whole[1], chunked[1])


def test_few_passes_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem()
    passes = [0]
    evaluate = softmax._loss_and_gradient  # pyright: ignore[reportPrivateUsage] (its gradient is what is checked)

    def counted(x_ND: Tensor, y_N: Tensor, weights: Tensor, decay: float) -> tuple[float, Tensor]:
        passes[0] += 1
        return evaluate(x_ND, y_N, weights, decay)

    monkeypatch.setattr(softmax, "_loss_and_gradient", counted)
    fit_softmax(x, y, start=torch.zeros(4, 13), decay=1e-3, curvature=CurvatureBound(x), tolerance=1e-3)
    assert passes[0] <= 30


def test_a_rarely_active_feature_does_not_slow_the_fit_down(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = problem()
    rare = torch.zeros(len(x))
    rare[::100] = 1
    x = torch.cat([x, ((rare - rare.mean()) / rare.std())[:, None]], 1)
    passes = [0]
    evaluate = softmax._loss_and_gradient  # pyright: ignore[reportPrivateUsage] (its gradient is what is checked)

    def counted(x_ND: Tensor, y_N: Tensor, weights: Tensor, decay: float) -> tuple[float, Tensor]:
        passes[0] += 1
        return evaluate(x_ND, y_N, weights, decay)

    monkeypatch.setattr(softmax, "_loss_and_gradient", counted)
    fit_softmax(x, y, start=torch.zeros(4, 14), decay=1e-3, curvature=CurvatureBound(x), tolerance=1e-3)
    assert passes[0] <= 30


def test_more_features_than_rows_and_equal_features_are_fine() -> None:
    x, y = problem(20, 60)
    x[:, 1] = x[:, 0]
    x[:, 2] = 0
    found = fit_softmax(x, y, start=torch.zeros(4, 61), decay=0.1, curvature=CurvatureBound(x), tolerance=1e-5)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[:, 0], found[:, 1], atol=1e-3, rtol=0)
    assert (found[:, 2] == 0).all()


def test_the_same_problem_gives_the_same_bits(untouched_generators: None) -> None:
    x, y = problem()
    fits = [
        fit_softmax(x, y, start=torch.zeros(4, 13), decay=0.01, curvature=CurvatureBound(x), tolerance=1e-4)
        for _ in range(2)
    ]
    assert torch.equal(fits[0], fits[1])
