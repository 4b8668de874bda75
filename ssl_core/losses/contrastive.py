"""Contrastive losses, streamed over tiles of rows so that no N × N matrix exists.

Shapes: M rows of the global batch (all views), D dimensions, N pairs, K queue entries. Sums are in float32 or better,
under autocast too.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_TILE_ELEMENTS = 1 << 21  # similarities alive at a time: 8 MiB in float32


def _accurate(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _TiledNTXent(torch.autograd.Function):
    """Sum over own rows of −s[i, p(i)] + log Σ_{j≠i} exp s[i, j]; the gradient is computed in the same pass."""

    @staticmethod
    def forward(ctx: Any, z_MD: Tensor, positive_M: Tensor, own: slice, temperature: float) -> Tensor:
        rows = range(z_MD.shape[0])[own]
        tile = max(1, _TILE_ELEMENTS // z_MD.shape[0])
        total = z_MD.new_zeros(())
        gradient_MD = torch.zeros_like(z_MD)
        for start in range(rows.start, rows.stop, tile):
            index = torch.arange(start, min(start + tile, rows.stop), device=z_MD.device)
            local = index - start
            mine = slice(start, start + len(index))
            s_TM = (z_MD[mine] @ z_MD.T).div_(temperature)
            s_TM[local, index] = -torch.inf
            log_sum_T = s_TM.logsumexp(1)
            total += (log_sum_T - s_TM[local, positive_M[mine]]).sum()
            ds_TM = s_TM.sub_(log_sum_T[:, None]).exp_()  # the softmax; minus the target it is dℓ/ds
            ds_TM[local, positive_M[mine]] -= 1
            gradient_MD[mine].addmm_(ds_TM, z_MD, alpha=1 / temperature)
            gradient_MD.addmm_(ds_TM.T, z_MD[mine], alpha=1 / temperature)
        ctx.save_for_backward(gradient_MD)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator)
        (gradient_MD,) = ctx.saved_tensors
        return gradient_MD * grad_outputs[0], None, None, None


def nt_xent_partial(rows_MD: Tensor, positive_M: Tensor, *, own: slice, temperature: float) -> Tensor:
    """NT-Xent (SimCLR, arXiv 2002.05709, eq. 1) of some rows against all: the sum over own rows of ℓ(i).

    Args:
        rows_MD: embeddings of the global batch, normalised here.
        positive_M: int64, the row of each row's other view.
        own: contiguous rows whose terms are summed; the slices of all workers together cover every row once.
        temperature: τ > 0.

    Returns:
        A scalar; its sum over workers, divided by M, is the loss. Its gradient reaches all rows.
    """
    with torch.autocast(rows_MD.device.type, enabled=False):
        z_MD = F.normalize(_accurate(rows_MD), dim=1)
        return _TiledNTXent.apply(z_MD, positive_M, own, temperature)


def nt_xent(a: Tensor, b: Tensor, *, temperature: float = 0.1) -> Tensor:
    """NT-Xent over N pairs (SimCLR, arXiv 2002.05709, eq. 1), mean over the 2N rows.

    Args:
        a: first views [N, D], normalised here.
        b: second views [N, D], row i belongs to row i of `a`.
        temperature: τ > 0.
    """
    index = torch.arange(len(a), device=a.device)
    positive = torch.cat([index + len(a), index])
    rows = torch.cat([_accurate(a), _accurate(b)])
    return nt_xent_partial(rows, positive, own=slice(0, len(rows)), temperature=temperature) / len(rows)


class _TiledInfoNCE(torch.autograd.Function):
    """Sum over rows of −log softmax of the positive among it and the others; gradient with respect to q alone."""

    @staticmethod
    def forward(
        ctx: Any, q_OD: Tensor, k_OD: Tensor, others_KD: Tensor, column_O: Tensor | None, temperature: float
    ) -> Tensor:
        tile = max(1, _TILE_ELEMENTS // len(others_KD))
        total = q_OD.new_zeros(())
        gradient_OD = torch.empty_like(q_OD)
        for start in range(0, len(q_OD), tile):
            mine = slice(start, start + tile)
            s_TK = (q_OD[mine] @ others_KD.T).div_(temperature)
            if column_O is not None:
                s_TK[torch.arange(len(s_TK), device=s_TK.device), column_O[mine]] = -torch.inf
            positive_T = (q_OD[mine] * k_OD[mine]).sum(1) / temperature
            log_sum_T = torch.logaddexp(s_TK.logsumexp(1), positive_T)
            total += (log_sum_T - positive_T).sum()
            probability_TK = s_TK.sub_(log_sum_T[:, None]).exp_()
            gradient_TD = (positive_T - log_sum_T).expm1_()[:, None] * k_OD[mine]
            gradient_OD[mine] = gradient_TD.addmm_(probability_TK, others_KD) / temperature
        ctx.save_for_backward(gradient_OD)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator)
        (gradient_OD,) = ctx.saved_tensors
        return gradient_OD * grad_outputs[0], None, None, None, None


def info_nce_partial(
    q: Tensor, k: Tensor, others: Tensor, *, temperature: float, positive_column: Tensor | None = None
) -> Tensor:
    """InfoNCE (MoCo, arXiv 1911.05722, eq. 1) of some queries: the sum over them; no gradient reaches k or others.

    Args:
        q: queries [O, D], normalised here.
        k: the keys of the same samples [O, D], normalised here.
        others: negatives [K, D], normalised here.
        temperature: τ > 0.
        positive_column: int64 [O], the row of `others` that is the query's own key and therefore no negative; None
            where `others` (a queue) holds none.
    """
    with torch.autocast(q.device.type, enabled=False):
        q_OD = F.normalize(_accurate(q), dim=1)
        k_OD = F.normalize(_accurate(k.detach()), dim=1)
        others_KD = F.normalize(_accurate(others.detach()), dim=1)
        return _TiledInfoNCE.apply(q_OD, k_OD, others_KD, positive_column, temperature)


def info_nce(q: Tensor, k: Tensor, queue: Tensor, *, temperature: float = 0.07) -> Tensor:
    """InfoNCE with a queue (MoCo, arXiv 1911.05722, eq. 1), mean over N; no gradient reaches `k` or `queue`.

    Args:
        q: queries [N, D], normalised here.
        k: the keys of the same samples [N, D], normalised here.
        queue: negatives [K, D], normalised here.
        temperature: τ > 0.
    """
    return info_nce_partial(q, k, queue, temperature=temperature) / len(q)
