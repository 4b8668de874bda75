"""Contrastive losses, streamed over square tiles so that no N × N matrix exists: O(N · D + tile²) memory.

Shapes: M rows of the global batch (all views), D dimensions, N pairs, K other keys; O own rows; I and J rows of a tile.
Rows are unit vectors, so a similarity s = z·z′/τ lies in [−1/τ, 1/τ] and exp s needs no maximum to be taken off first:
a tile's exponentials are final as soon as they are there, and s[i, j] = s[j, i] lets a tile of own rows by own rows
stand for its mirror image too. Exponentials are in float32 while exp(±1/τ) and its sums fit, else in float64.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_TEMPERATURE = 1 / 600
"""The smallest τ whose exp(1/τ) and sums of it fit into float64."""

_TILE = 1024  # rows and columns of a tile: 4 MiB in float32
_LARGEST_EXPONENT_IN_FLOAT32 = 60.0


def _accurate(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _exponential_dtype(rows: Tensor, temperature: float) -> torch.dtype:
    if not temperature >= MIN_TEMPERATURE:
        raise ValueError(f"temperature={temperature}: use at least {MIN_TEMPERATURE:.4f}")
    return rows.dtype if 1 / temperature <= _LARGEST_EXPONENT_IN_FLOAT32 else torch.float64


def _cut(start: int, stop: int) -> list[slice]:
    return [slice(begin, min(begin + _TILE, stop)) for begin in range(start, stop, _TILE)]


def _tiles(own: range, num_rows: int) -> Iterator[tuple[slice, slice, bool]]:
    """Tiles (I, J, mirrored) of own rows × all rows; of two tiles that mirror each other the first alone."""
    mine = _cut(own.start, own.stop)
    others = _cut(0, own.start) + _cut(own.stop, num_rows)
    for i, rows in enumerate(mine):
        yield rows, rows, False
        yield from ((rows, columns, True) for columns in mine[i + 1 :])
        yield from ((rows, columns, False) for columns in others)


def _exponentials(scaled_MD: Tensor, z_MD: Tensor, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
    """exp s of a tile, 0 where a row meets itself."""
    e_IJ = (scaled_MD[rows] @ z_MD[columns].T).to(dtype).exp_()
    return e_IJ.fill_diagonal_(0) if rows == columns else e_IJ


class _TiledNTXent(torch.autograd.Function):
    """Sum over own rows of −s[i, p(i)] + log Σ_{j≠i} exp s[i, j]; two sweeps over the tiles, one each way."""

    @staticmethod
    def forward(ctx: Any, z_MD: Tensor, positive_M: Tensor, own: slice, temperature: float) -> Tensor:
        mine = range(len(z_MD))[own]
        dtype = _exponential_dtype(z_MD, temperature)
        scaled_MD = z_MD / temperature
        sum_M = z_MD.new_zeros(len(z_MD), dtype=dtype)
        for rows, columns, mirrored in _tiles(mine, len(z_MD)):
            e_IJ = _exponentials(scaled_MD, z_MD, rows, columns, dtype)
            sum_M[rows] += e_IJ.sum(1)
            if mirrored:
                sum_M[columns] += e_IJ.sum(0)
        ctx.save_for_backward(z_MD, positive_M, sum_M)
        ctx.mine, ctx.temperature = mine, temperature
        log_sum_O = sum_M[own].log().to(z_MD.dtype)
        return (log_sum_O - (scaled_MD[own] * z_MD[positive_M[own]]).sum(1)).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator)
        z_MD, positive_M, sum_M = ctx.saved_tensors
        own = slice(ctx.mine.start, ctx.mine.stop)
        scaled_MD = z_MD / ctx.temperature
        inverse_M = torch.zeros_like(sum_M)  # 0 where a row's own term belongs to another worker
        inverse_M[own] = sum_M[own].reciprocal()
        gradient_MD = torch.zeros_like(z_MD)
        gradient_MD[own] -= z_MD[positive_M[own]]
        gradient_MD[positive_M[own]] -= z_MD[own]
        for rows, columns, _ in _tiles(ctx.mine, len(z_MD)):
            e_IJ = _exponentials(scaled_MD, z_MD, rows, columns, sum_M.dtype)
            ds_IJ = e_IJ.mul_(inverse_M[rows, None] + inverse_M[columns]).to(z_MD.dtype)  # both rows' softmax
            gradient_MD[rows].addmm_(ds_IJ, z_MD[columns])
            if rows != columns:
                gradient_MD[columns].addmm_(ds_IJ.T, z_MD[rows])
        return gradient_MD.mul_(grad_outputs[0] / ctx.temperature), None, None, None


def nt_xent_partial(rows_MD: Tensor, positive_M: Tensor, *, own: slice, temperature: float) -> Tensor:
    """NT-Xent (SimCLR, arXiv 2002.05709, eq. 1) of some rows against all: the sum over own rows of ℓ(i).

    Args:
        rows_MD: embeddings of the global batch, normalised here.
        positive_M: int64, the row of each row's other view.
        own: contiguous rows whose terms are summed; the slices of all workers together cover every row once.
        temperature: τ ≥ MIN_TEMPERATURE.

    Returns:
        A scalar; its sum over workers, divided by M, is the loss. Its gradient reaches all rows.

    Raises:
        ValueError: τ is too small for exp(1/τ).
    """
    with torch.autocast(rows_MD.device.type, enabled=False):
        z_MD = F.normalize(_accurate(rows_MD), dim=1)
        return _TiledNTXent.apply(z_MD, positive_M, own, temperature)


def nt_xent(a: Tensor, b: Tensor, *, temperature: float = 0.1) -> Tensor:
    """NT-Xent over N pairs (SimCLR, arXiv 2002.05709, eq. 1), mean over the 2N rows.

    Args:
        a: first views [N, D], normalised here.
        b: second views [N, D], row i belongs to row i of `a`.
        temperature: τ ≥ MIN_TEMPERATURE.
    """
    index = torch.arange(len(a), device=a.device)
    positive = torch.cat([index + len(a), index])
    rows = torch.cat([_accurate(a), _accurate(b)])
    return nt_xent_partial(rows, positive, own=slice(0, len(rows)), temperature=temperature) / len(rows)


class _TiledInfoNCE(torch.autograd.Function):
    """Sum over rows of −log softmax of the positive among it and the others; gradient with respect to q alone.

    With E = Σ exp s over the others and P = exp s of the positive, ∂ℓ/∂q = (Σ exp s · other − E · k) / ((E + P) τ): one
    sweep over the tiles gives both the loss and its gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, q_OD: Tensor, k_OD: Tensor, others_KD: Tensor, column_O: Tensor | None, temperature: float
    ) -> Tensor:
        dtype = _exponential_dtype(q_OD, temperature)
        total = q_OD.new_zeros(())
        gradient_OD = torch.empty_like(q_OD)
        for rows in _cut(0, len(q_OD)):
            scaled_ID, k_ID = q_OD[rows] / temperature, k_OD[rows]
            sum_I = q_OD.new_zeros(len(scaled_ID), dtype=dtype)
            drawn_ID = scaled_ID.new_zeros(scaled_ID.shape, dtype=dtype)
            for columns in _cut(0, len(others_KD)):
                e_IJ = (scaled_ID @ others_KD[columns].T).to(dtype).exp_()
                if column_O is not None:
                    _forget_(e_IJ, column_O[rows] - columns.start)
                sum_I += e_IJ.sum(1)
                drawn_ID.addmm_(e_IJ, others_KD[columns].to(dtype))
            positive_I = (scaled_ID * k_ID).sum(1).to(dtype)
            all_I = sum_I + positive_I.exp()
            total += (all_I.log() - positive_I).sum().to(total.dtype)
            gradient_OD[rows] = drawn_ID.sub_(sum_I[:, None] * k_ID).div_(all_I[:, None] * temperature)
        ctx.save_for_backward(gradient_OD)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator)
        (gradient_OD,) = ctx.saved_tensors
        return gradient_OD * grad_outputs[0], None, None, None, None


def _forget_(e_IJ: Tensor, column_I: Tensor) -> None:
    """Zero one entry of each row whose column lies in this tile; without asking the device which rows these are."""
    here_I1 = ((column_I >= 0) & (column_I < e_IJ.shape[1]))[:, None]
    column_I1 = column_I.clamp(0, e_IJ.shape[1] - 1)[:, None]
    e_IJ.scatter_(1, column_I1, e_IJ.gather(1, column_I1).masked_fill_(here_I1, 0))


def info_nce_partial(
    q: Tensor, k: Tensor, others: Tensor, *, temperature: float, positive_column: Tensor | None = None
) -> Tensor:
    """InfoNCE (MoCo, arXiv 1911.05722, eq. 1) of some queries: the sum over them; no gradient reaches k or others.

    Args:
        q: queries [O, D], normalised here.
        k: the keys of the same samples [O, D], unit vectors.
        others: negatives [K, D], unit vectors.
        temperature: τ ≥ MIN_TEMPERATURE.
        positive_column: int64 [O], the row of `others` that is the query's own key and therefore no negative; None
            where `others` (a queue) holds none.

    Raises:
        ValueError: τ is too small for exp(1/τ).
    """
    with torch.autocast(q.device.type, enabled=False):
        q_OD = F.normalize(_accurate(q), dim=1)
        k_OD, others_KD = _accurate(k.detach()), _accurate(others.detach())
        return _TiledInfoNCE.apply(q_OD, k_OD, others_KD, positive_column, temperature)


def info_nce(q: Tensor, k: Tensor, queue: Tensor, *, temperature: float = 0.07) -> Tensor:
    """InfoNCE with a queue (MoCo, arXiv 1911.05722, eq. 1), mean over N; no gradient reaches `k` or `queue`.

    Args:
        q: queries [N, D], normalised here.
        k: the keys of the same samples [N, D], normalised here.
        queue: negatives [K, D], normalised here.
        temperature: τ ≥ MIN_TEMPERATURE.
    """
    k_ND, queue_KD = (F.normalize(_accurate(keys), dim=1) for keys in (k, queue))
    return info_nce_partial(q, k_ND, queue_KD, temperature=temperature) / len(q)
