"""BatchNorm by lanes on a GPU: all lanes in one launch, where the native kernels need a launch for each.

Forward and backward alike: parts of each lane's sums, their union, and the values. Means and squared
deviations of parts are joined by Chan's formulas (Chan, Golub and LeVeque, 1983), so that nothing cancels; sums are
in float32 (float64 for such inputs) and in an order that the shapes alone decide, so that steps repeat to the bit.

Shapes: L lanes of M values (rows · height · width) of F features, features last in memory: [L, M, F]; S parts.
"""

# Triton comes with torch's builds for GPUs alone, and infers the types of what it compiles from each call.
# pyright: reportMissingImports=false, reportMissingParameterType=false, reportUnknownParameterType=false

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 4096  # values that a program looks at together
_PROGRAMS = 2048  # that a sum is divided into, about: some for each of a GPU's processors


def _kernel(function: Callable[..., None]) -> Any:
    """Compiled at its first launch, `kernel[programs](…)`."""
    return triton.jit(function)


@_kernel
def _partial_moments(x, parts, M, F, chunk, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr, REAL: tl.constexpr):
    """Mean and sum of squared deviations of a lane's rows from `split · chunk` on: parts [L, S, 2, F]."""
    split, lane = tl.program_id(0), tl.program_id(2)
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    begin, end = split * chunk, tl.minimum((split + 1) * chunk, M)
    mean = tl.zeros([BLOCK_F], REAL)
    squares = tl.zeros([BLOCK_F], REAL)
    for first in range(begin, end, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        known = (rows < end)[:, None] & (features < F)[None, :]
        place = (lane.to(tl.int64) * M + rows)[:, None] * F + features[None, :]
        values = tl.load(x + place, mask=known, other=0.0).to(REAL)
        before = (first - begin).to(REAL)
        count = tl.minimum(BLOCK_M, end - first).to(REAL)
        own = tl.sum(values, 0) / count
        away = tl.where(known, values - own[None, :], 0.0)
        further = own - mean
        mean += further * (count / (before + count))
        squares += tl.sum(away * away, 0) + further * further * (before * count / (before + count))
    place = (lane * tl.num_programs(0) + split) * 2 * F + features
    tl.store(parts + place, mean, mask=features < F)
    tl.store(parts + place + F, squares, mask=features < F)


@_kernel
def _join_moments(
    parts,
    mean_LF,
    scale_LF,
    seen_L2F,
    M,
    F,
    chunk,
    splits,
    EPS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    REAL: tl.constexpr,
):
    """Mean, 1 / deviation, and what running statistics take, of each lane."""
    lane = tl.program_id(1)
    features = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F)
    known = features < F
    mean = tl.zeros([BLOCK_F], REAL)
    squares = tl.zeros([BLOCK_F], REAL)
    for split in range(splits):
        place = parts + (lane * splits + split) * 2 * F + features
        own = tl.load(place, mask=known, other=0.0)
        before = (split * chunk).to(REAL)
        count = tl.minimum(chunk, M - split * chunk).to(REAL)
        further = own - mean
        mean += further * (count / (before + count))
        squares += tl.load(place + F, mask=known, other=0.0)
        squares += further * further * (before * count / (before + count))
    values = M.to(REAL)
    place = lane * F + features
    tl.store(mean_LF + place, mean, mask=known)
    tl.store(scale_LF + place, 1 / tl.sqrt(squares / values + tl.full([BLOCK_F], EPS, REAL)), mask=known)
    tl.store(seen_L2F + place + lane * F, mean, mask=known)
    tl.store(seen_L2F + place + lane * F + F, squares / (values - 1), mask=known)


@_kernel
def _normalise(
    x,
    y,
    mean_LF,
    scale_LF,
    weight_F,
    bias_F,
    M,
    F,
    AFFINE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    REAL: tl.constexpr,
):
    """y = (x − mean) · scale · weight + bias."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    lane = tl.program_id(2)
    known = features < F
    mean = tl.load(mean_LF + lane * F + features, mask=known)
    gain = tl.load(scale_LF + lane * F + features, mask=known)
    if AFFINE:
        gain *= tl.load(weight_F + features, mask=known).to(REAL)
    place = (lane.to(tl.int64) * M + rows)[:, None] * F + features[None, :]
    inside = (rows < M)[:, None] & known[None, :]
    made = (tl.load(x + place, mask=inside).to(REAL) - mean[None, :]) * gain[None, :]
    if AFFINE:
        made += tl.load(bias_F + features, mask=known).to(REAL)[None, :]
    tl.store(y + place, made, mask=inside)


@_kernel
def _partial_sums(
    dy, x, mean_LF, scale_LF, parts, M, F, chunk, BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr, REAL: tl.constexpr
):
    """Σ dy and Σ dy · x̂ over a lane's rows from `split · chunk` on: parts [L, S, 2, F]."""
    split, lane = tl.program_id(0), tl.program_id(2)
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    begin, end = split * chunk, tl.minimum((split + 1) * chunk, M)
    mean = tl.load(mean_LF + lane * F + features, mask=features < F)
    scale = tl.load(scale_LF + lane * F + features, mask=features < F)
    plain = tl.zeros([BLOCK_F], REAL)
    weighted = tl.zeros([BLOCK_F], REAL)
    for first in range(begin, end, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        known = (rows < end)[:, None] & (features < F)[None, :]
        place = (lane.to(tl.int64) * M + rows)[:, None] * F + features[None, :]
        slopes = tl.load(dy + place, mask=known, other=0.0).to(REAL)
        values = tl.load(x + place, mask=known, other=0.0).to(REAL)
        plain += tl.sum(slopes, 0)
        weighted += tl.sum(slopes * (values - mean[None, :]), 0) * scale
    place = (lane * tl.num_programs(0) + split) * 2 * F + features
    tl.store(parts + place, plain, mask=features < F)
    tl.store(parts + place + F, weighted, mask=features < F)


@_kernel
def _input_gradient(
    dy,
    x,
    dx,
    mean_LF,
    scale_LF,
    weight_F,
    sums_L2F,
    M,
    F,
    AFFINE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    REAL: tl.constexpr,
):
    """dx = (dy − mean(dy) − x̂ · mean(dy · x̂)) · scale · weight."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    features = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    lane = tl.program_id(2)
    known = features < F
    values = M.to(REAL)
    mean = tl.load(mean_LF + lane * F + features, mask=known)
    scale = tl.load(scale_LF + lane * F + features, mask=known)
    plain = tl.load(sums_L2F + 2 * lane * F + features, mask=known) / values
    weighted = tl.load(sums_L2F + 2 * lane * F + F + features, mask=known) / values
    gain = scale
    if AFFINE:
        gain = scale * tl.load(weight_F + features, mask=known).to(REAL)
    place = (lane.to(tl.int64) * M + rows)[:, None] * F + features[None, :]
    inside = (rows < M)[:, None] & known[None, :]
    slopes = tl.load(dy + place, mask=inside).to(REAL)
    normal = (tl.load(x + place, mask=inside).to(REAL) - mean[None, :]) * scale[None, :]
    made = (slopes - plain[None, :] - normal * weighted[None, :]) * gain[None, :]
    tl.store(dx + place, made, mask=inside)


def forward(
    x: Tensor, weight_F: Tensor | None, bias_F: Tensor | None, num_lanes: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise each lane by itself.

    Args:
        x: [N, F] or [N, F, H, W], N = L · rows a lane; copied unless features lie last in memory.
        weight_F: or None, as `bias_F`.
        bias_F: or None.
        num_lanes: L.
        eps: added to each variance.

    Returns:
        y as x; mean [L, F]; 1 / deviation [L, F]; mean and unbiased variance [L, 2, F]; these in float32 or better.
    """
    x = _features_last(x)
    y, cut = torch.empty_like(x), _cut(x.shape, x.dtype, num_lanes)
    parts = x.new_empty(num_lanes, cut.splits, 2, cut.features, dtype=cut.real)
    mean_LF, scale_LF = x.new_empty(2, num_lanes, cut.features, dtype=cut.real)
    seen_L2F = x.new_empty(num_lanes, 2, cut.features, dtype=cut.real)
    with torch.cuda.device_of(x):
        _partial_moments[cut.parts](x, parts, cut.values, cut.features, cut.chunk, **cut.tile)
        _join_moments[cut.lanes](
            parts, mean_LF, scale_LF, seen_L2F, cut.values, cut.features, cut.chunk, cut.splits, EPS=eps, **cut.row
        )
        _normalise[cut.tiles](
            x, y, mean_LF, scale_LF, weight_F, bias_F, cut.values, cut.features, AFFINE=weight_F is not None, **cut.tile
        )
    return y, mean_LF, scale_LF, seen_L2F


def backward(
    dy: Tensor, x: Tensor, weight_F: Tensor | None, mean_LF: Tensor, scale_LF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients with respect to x, as it is; to the weight [F]; and to the bias [F]."""
    dy, x = _features_last(dy), _features_last(x)
    dx, cut = torch.empty_like(x), _cut(x.shape, x.dtype, len(mean_LF))
    parts = x.new_empty(len(mean_LF), cut.splits, 2, cut.features, dtype=cut.real)
    with torch.cuda.device_of(x):
        _partial_sums[cut.parts](dy, x, mean_LF, scale_LF, parts, cut.values, cut.features, cut.chunk, **cut.tile)
        sums_L2F = parts.sum(1)
        _input_gradient[cut.tiles](
            dy,
            x,
            dx,
            mean_LF,
            scale_LF,
            weight_F,
            sums_L2F,
            cut.values,
            cut.features,
            AFFINE=weight_F is not None,
            **cut.tile,
        )
    dbias_F, dweight_F = sums_L2F.sum(0).unbind()
    return dx, dweight_F, dbias_F


def _features_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """How values are divided among programs."""

    values: int  # M
    features: int
    chunk: int  # values of a part
    parts: tuple[int, int, int]  # programs: part, block of features, lane
    lanes: tuple[int, int]  # block of features, lane
    tiles: tuple[int, int, int]  # block of values, block of features, lane
    real: torch.dtype  # of sums
    row: Mapping[str, Any]
    tile: Mapping[str, Any]

    @property
    def splits(self) -> int:
        return self.parts[0]


@lru_cache(maxsize=4096)  # Python's share of a launch is what a GPU waits for
def _cut(shape: torch.Size, dtype: torch.dtype, num_lanes: int) -> _Cut:
    """A function of shape and type alone, so that the kernels add in one order."""
    features = shape[1]
    values = shape.numel() // (num_lanes * features)
    block_F = min(64, 1 << (features - 1).bit_length())
    block_M = _TILE // block_F
    blocks = -(-features // block_F)
    splits = max(1, min(_PROGRAMS // (num_lanes * blocks), -(-values // (4 * block_M))))
    chunk = -(-values // (splits * block_M)) * block_M
    real = torch.promote_types(dtype, torch.float32)
    row: dict[str, Any] = {"BLOCK_F": block_F, "REAL": tl.float64 if real == torch.float64 else tl.float32}
    return _Cut(
        values=values,
        features=features,
        chunk=chunk,
        parts=(-(-values // chunk), blocks, num_lanes),
        lanes=(blocks, num_lanes),
        tiles=(-(-values // block_M), blocks, num_lanes),
        real=real,
        row=row,
        tile={"BLOCK_M": block_M, **row},
    )
