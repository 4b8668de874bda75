"""BatchNorm over the rows of all workers, on any device and in any precision, with exact gradients.

Shapes: N rows of all workers times pixels, F features. Statistics, normalisation and the local part of the gradient are
the native layer's kernels; between them 2F + 1 numbers a worker are gathered forwards and 2F summed backwards.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.collectives import Collectives


def _statistics(x: Tensor, eps: float) -> Tensor:
    """[1 + 2F] in float32 or better: count, mean and sum of squared deviations of this worker's rows."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean, variance = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
    F.batch_norm(x, mean, variance, None, None, True, 1.0, eps)  # momentum 1.0: mean and unbiased variance
    count = x.numel() // x.shape[1]
    return torch.cat([mean.new_full((1,), count), mean, variance * (count - 1)])


class _GlobalBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_F: Tensor, bias_F: Tensor, eps: float, collectives: Collectives
    ) -> tuple[Tensor, Tensor]:
        parts = collectives.gather_rows(_statistics(x, eps)[None], [1] * collectives.world)
        counts_W, means_WF, squares_WF = parts[:, :1], *parts[:, 1:].chunk(2, 1)
        total = counts_W.sum()
        mean_F = (counts_W * means_WF).sum(0) / total
        square_F = (squares_WF + counts_W * (means_WF - mean_F) ** 2).sum(0)  # Chan, Golub and LeVeque, 1983
        variance_F = square_F / total
        ctx.save_for_backward(x, weight_F, mean_F, variance_F, total)
        ctx.eps, ctx.collectives = eps, collectives
        y = F.batch_norm(x, mean_F, variance_F, weight_F, bias_F, False, 0.0, eps)
        seen_2F = torch.stack([mean_F, square_F / (total - 1)])
        ctx.mark_non_differentiable(seen_2F)
        return y, seen_2F

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator)
        x, weight_F, mean_F, variance_F, total = ctx.saved_tensors
        scale_F = (variance_F + ctx.eps).rsqrt()
        # CPU kernels take the mean and variance here, some of a GPU's the mean and scale
        dx, dweight_F, dbias_F = torch.ops.aten.native_batch_norm_backward(
            grad_outputs[0], x, weight_F, mean_F, variance_F, mean_F, scale_F, False, ctx.eps, [True, True, True]
        )
        sums_2F = ctx.collectives.sum_(torch.stack([dweight_F, dbias_F]).to(mean_F.dtype))
        # what the statistics' own dependence on x takes away: γ σ⁻¹ (Σ dy + x̂ Σ dy x̂) / N, as slope · x + offset
        slope_F = weight_F * scale_F**2 * sums_2F[0] / total
        offset_F = weight_F * scale_F * sums_2F[1] / total - slope_F * mean_F
        shape = [1, -1, *[1] * (x.ndim - 2)]
        dx = (dx - torch.addcmul(offset_F.view(shape), x, slope_F.view(shape))).to(x.dtype)
        return dx, dweight_F, dbias_F, None, None


def global_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float, collectives: Collectives
) -> tuple[Tensor, Tensor]:
    """Normalise by the mean and biased variance of all workers' rows.

    Args:
        x: this worker's rows [rows, F] or [rows, F, H, W]; the numbers of rows may differ between workers.
        weight: γ [F], or None for 1.
        bias: β [F], or None for 0.
        eps: added to the variance.
        collectives: every worker calls alike.

    Returns:
        y as `x`, and [2, F] in float32 or better: the mean and the unbiased variance.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight = x.new_ones(x.shape[1], dtype=dtype) if weight is None else weight
    bias = x.new_zeros(x.shape[1], dtype=dtype) if bias is None else bias
    return _GlobalBatchNorm.apply(x, weight, bias, eps, collectives)
