"""Multinomial logistic regression, solved to its optimum: full-batch L-BFGS in coordinates that fit the problem.

The loss is mean cross-entropy + decay / 2 · ‖W‖² (no decay on the bias). On frozen features its curvature differs
between directions by factors of a million, and plain L-BFGS needs hundreds of passes. Whatever W is, the Hessian is
bounded by ½ XᵀX / N + decay for each class (Böhning, "Multinomial logistic regression algorithm", 1992); with L Lᵀ that
bound, U = W L is optimised instead of W. The optimum is the same, and 10 to 20 passes reach it.

Legend: N rows, D features, C classes; weights are [C, D + 1] with the bias last.
"""

import torch
from torch import Tensor

_BIAS_SCALE = 0.5**0.5  # the bound for the bias, whose input is 1
_LOGITS_A_CHUNK = 1 << 25  # rows are visited in chunks of so many logits


class CurvatureBound:
    """The preconditioner of inputs x: float32 [N, D] with mean 0.

    It changes how fast a fit is, not its result, and knows no labels; so one serves all fits on rows of x.
    """

    def __init__(self, x_ND: Tensor) -> None:
        # of all rows: a sample misses features that are rarely active, and fits on them crawl
        self._half_covariance = (x_ND.T @ x_ND).double() / (2 * len(x_ND))
        self._factors: dict[float, Tensor] = {}

    def factor(self, decay: float) -> Tensor:
        """L of the bound's Cholesky factorisation: float32 [D, D], lower triangular."""
        if decay not in self._factors:
            bound = self._half_covariance.clone()
            bound.diagonal().add_(max(decay, 1e-6))
            self._factors[decay] = torch.linalg.cholesky(bound).float()
        return self._factors[decay]


def fit_softmax(
    x_ND: Tensor,
    y_N: Tensor,
    *,
    start: Tensor,
    decay: float,
    curvature: CurvatureBound,
    tolerance: float,
    max_iterations: int = 200,
) -> Tensor:
    """Minimise the loss.

    Args:
        x_ND: float32 inputs.
        y_N: int64 labels below C.
        start: float32 [C, D + 1], where to begin.
        decay: weight of ½ ‖W‖².
        curvature: the preconditioner.
        tolerance: stop where no preconditioned gradient entry is larger.
        max_iterations: L-BFGS iterations at most.

    Returns:
        float32 [C, D + 1].
    """
    factor = curvature.factor(decay)
    point = torch.cat([start[:, :-1] @ factor, start[:, -1:] * _BIAS_SCALE], 1).requires_grad_()
    solver = torch.optim.LBFGS(
        [point],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        history_size=10,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def weights() -> Tensor:
        inner = torch.linalg.solve_triangular(factor, point[:, :-1], upper=False, left=False)
        return torch.cat([inner, point[:, -1:] / _BIAS_SCALE], 1)

    @torch.no_grad()
    def evaluate() -> float:
        loss, gradient = _loss_and_gradient(x_ND, y_N, weights(), decay)
        inner = torch.linalg.solve_triangular(factor, gradient[:, :-1].T, upper=False).T
        point.grad = torch.cat([inner, gradient[:, -1:] / _BIAS_SCALE], 1)
        return loss

    solver.step(evaluate)
    with torch.no_grad():
        return weights()


def logits(x_ND: Tensor, weights: Tensor) -> Tensor:
    """float32 [N, C]."""
    return torch.addmm(weights[:, -1], x_ND, weights[:, :-1].T)


def _loss_and_gradient(x_ND: Tensor, y_N: Tensor, weights: Tensor, decay: float) -> tuple[float, Tensor]:
    """The loss and its gradient with respect to the weights, [C, D + 1]."""
    inner, bias = weights[:, :-1], weights[:, -1:]
    cross_entropy = x_ND.new_zeros((), dtype=torch.float64)
    gradient = torch.zeros_like(weights)
    chunk = max(1, _LOGITS_A_CHUNK // len(weights))
    for first in range(0, len(x_ND), chunk):
        x, y = x_ND[first : first + chunk], y_N[first : first + chunk]
        log_p_CN = torch.log_softmax(torch.addmm(bias, inner, x.T), 0)
        rows = torch.arange(len(y), device=y.device)
        cross_entropy -= log_p_CN[y, rows].sum(dtype=torch.float64)
        error_CN = log_p_CN.exp_()
        error_CN[y, rows] -= 1
        gradient[:, :-1].addmm_(error_CN, x)
        gradient[:, -1] += error_CN.sum(1)
    gradient /= len(x_ND)
    gradient[:, :-1].add_(inner, alpha=decay)
    loss = cross_entropy / len(x_ND) + 0.5 * decay * inner.square().sum(dtype=torch.float64)
    return float(loss), gradient
