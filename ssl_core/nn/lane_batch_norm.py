"""BatchNorm that normalises each lane by itself, as a GPU per lane would, whatever number of workers there is.

Or the whole global batch at once, where `use_lane_batch_norm` is given the workers to ask (`train.bn=global`).

Shapes: N rows = lanes · rows a lane, rows lie lane-major; F features; L lanes of B rows.

On a GPU all lanes share a launch (`ssl_core.nn.lane_kernels`). Otherwise the native kernel runs on each lane's
contiguous rows and writes into one output; the obvious `var_mean` over a [L, B, F, …] view is several times slower on a
CPU. With lanes seen as samples and features as groups the layer is a group norm (Wu and He, arXiv 1803.08494): one
call, nothing to join. Compilers make better code of that; the CPU's kernel for it is faster in bf16
(`benchmarks/batch_norm.py`), but sums squares in float32, too coarse for float32 data.

Running statistics are not touched in forward: the layer records every lane's (mean, unbiased variance), and the engine
commits their mean over all lanes of all workers once per step, so that they do not depend on the number of workers or
on how a step was cut into chunks.
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core.collectives import Collectives
from ssl_core.nn.global_batch_norm import global_batch_norm

_FOREACH: Any = torch  # torch exports the foreach operations without typing them
_MOMENTUM = 0.1  # the weight of a step in the running statistics
_FAST_GROUP = 1024  # for smaller groups torch's CPU group norm takes another way, ten times slower than ours by lanes


class _Normalised(NamedTuple):
    """What a way of normalising lanes makes."""

    y_NF: Tensor  # as x
    mean_LF: Tensor
    scale_LF: Tensor  # 1 / standard deviation
    seen_L2F: Tensor  # mean and unbiased variance, for the running statistics


_Gradients = tuple[Tensor, Tensor | None, Tensor | None]  # of x, weight and bias


class _Way(NamedTuple):
    """A way of normalising lanes, and of taking its gradient."""

    forward: Callable[[Tensor, Tensor | None, Tensor | None, int, float], _Normalised]
    """Of x, weight, bias, lanes and epsilon."""
    backward: Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, float], _Gradients]
    """Of dy, x, weight, mean, scale and epsilon."""


def _lane_by_lane(
    x_NF: Tensor, weight_F: Tensor | None, bias_F: Tensor | None, num_lanes: int, eps: float
) -> _Normalised:
    """The native kernel on each lane's rows, written to where they belong."""
    y_NF = torch.empty_like(x_NF)
    dtype = torch.promote_types(x_NF.dtype, torch.float32)
    seen_L2F = x_NF.new_zeros(num_lanes, 2, x_NF.shape[1], dtype=dtype)
    mean_LF, scale_LF = x_NF.new_empty(2, num_lanes, x_NF.shape[1], dtype=dtype)
    lanes = (x_NF.chunk(num_lanes), y_NF.chunk(num_lanes), seen_L2F.unbind(), mean_LF.unbind(), scale_LF.unbind())
    for x, y, seen_2F, mean, scale in zip(*lanes, strict=True):
        # momentum 1.0: the kernel writes this lane's mean and unbiased variance into `seen`
        torch.ops.aten.native_batch_norm.out(
            x, weight_F, bias_F, *seen_2F.unbind(), True, 1.0, eps, out=y, save_mean=mean, save_invstd=scale
        )
    return _Normalised(y_NF, mean_LF, scale_LF, seen_L2F)


def _as_group_norm(
    x_NFHW: Tensor, weight_F: Tensor | None, bias_F: Tensor | None, num_lanes: int, eps: float
) -> _Normalised:
    """One call, without a copy where channels lie last in memory."""
    rows = x_NFHW.permute(0, 2, 3, 1)
    _, _, width, features = rows.shape
    values = x_NFHW.numel() // (num_lanes * features)
    samples = rows.reshape(num_lanes, -1, width, features).permute(0, 3, 1, 2)
    y, mean_LF, scale_LF = torch.native_group_norm(
        samples, weight_F, bias_F, num_lanes, features, values, features, eps
    )
    correction = values / (values - 1)
    unbiased_LF = scale_LF.detach().pow(-2).mul_(correction).sub_(correction * eps)
    seen_L2F = torch.stack([mean_LF.detach(), unbiased_LF], 1)
    y_NFHW = y.permute(0, 2, 3, 1).reshape(rows.shape).permute(0, 3, 1, 2)
    return _Normalised(y_NFHW, mean_LF, scale_LF, seen_L2F)


def _lane_by_lane_backward(
    dy_NF: Tensor, x_NF: Tensor, weight_F: Tensor | None, mean_LF: Tensor, scale_LF: Tensor, eps: float
) -> _Gradients:
    """The native layer's, lane by lane: ten times faster than the group norm's."""
    dx_NF = torch.empty_like(x_NF)
    lanes = [tensor.chunk(len(mean_LF)) for tensor in (dy_NF, x_NF, dx_NF)]
    wanted = [True, weight_F is not None, weight_F is not None]
    dweights, dbiases = list[Tensor](), list[Tensor]()
    for dy, x, dx, mean, scale in zip(*lanes, mean_LF.unbind(), scale_LF.unbind(), strict=True):
        found, dweight, dbias = torch.ops.aten.native_batch_norm_backward.default(
            dy, x, weight_F, None, None, mean, scale, True, eps, wanted
        )
        dx.copy_(found)  # while it is in the cache
        dweights.append(dweight)
        dbiases.append(dbias)
    if weight_F is None:
        return dx_NF, None, None
    return dx_NF, torch.stack(dweights).sum(0), torch.stack(dbiases).sum(0)


_LANE_BY_LANE = _Way(_lane_by_lane, _lane_by_lane_backward)
_AS_GROUP_NORM = _Way(_as_group_norm, _lane_by_lane_backward)


@cache
def _on_gpu() -> tuple[_Way, str | None]:
    """The way on the GPU that this process computes on, and why it is not all lanes in one launch, if it is not."""
    try:
        from ssl_core.nn import lane_kernels

        lane_kernels.forward(torch.ones(4, 2, device="cuda"), None, None, 2, 1.0)
    except Exception as error:  # noqa: BLE001 (whatever is missing: Triton itself, a C compiler, its headers)
        return _LANE_BY_LANE, (str(error).strip() or type(error).__name__).splitlines()[0]

    def forward(x: Tensor, weight_F: Tensor | None, bias_F: Tensor | None, num_lanes: int, eps: float) -> _Normalised:
        return _Normalised(*lane_kernels.forward(x, weight_F, bias_F, num_lanes, eps))

    def backward(
        dy: Tensor, x: Tensor, weight_F: Tensor | None, mean_LF: Tensor, scale_LF: Tensor, eps: float
    ) -> _Gradients:
        return lane_kernels.backward(dy, x, weight_F, mean_LF, scale_LF)

    return _Way(forward, backward), None


def why_lane_by_lane(collectives: Collectives) -> str | None:
    """Why lanes do not share a launch on some worker's GPU, in one line; None where they do on all."""
    return next((reason for reason in collectives.gather_objects(_on_gpu()[1]) if reason), None)


class _LaneNorm(torch.autograd.Function):
    """Any of the ways."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NF: Tensor,
        weight_F: Tensor | None,
        bias_F: Tensor | None,
        num_lanes: int,
        eps: float,
        way: _Way,
    ) -> tuple[Tensor, Tensor]:
        made = way.forward(x_NF, weight_F, bias_F, num_lanes, eps)
        ctx.save_for_backward(x_NF, weight_F, made.mean_LF, made.scale_LF)
        ctx.mark_non_differentiable(made.seen_L2F)
        ctx.eps, ctx.backward_way = eps, way.backward
        return made.y_NF.detach(), made.seen_L2F  # not a view: activations may write over it

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator)
        x_NF, weight_F, mean_LF, scale_LF = ctx.saved_tensors
        dx, dweight, dbias = ctx.backward_way(grad_outputs[0], x_NF, weight_F, mean_LF, scale_LF, ctx.eps)
        return dx, *((None, None) if weight_F is None else (dweight, dbias)), None, None, None


class LaneBatchNorm(nn.Module):
    """Drop-in for `nn.BatchNorm1d` and `nn.BatchNorm2d` with the same state_dict names.

    In eval mode it is the native layer. In training mode it normalises `num_lanes` equal groups of rows, each by its
    own biased variance, and appends what it saw to `recorded`, a list of [lanes, 2, F] (mean, unbiased variance).
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.num_features = num_features
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()
        self.num_lanes = 1
        self.everyone: Collectives | None = None
        self.recording = False
        self.recorded: list[Tensor] = []

    @classmethod
    def from_native(cls, layer: nn.BatchNorm1d | nn.BatchNorm2d) -> "LaneBatchNorm":
        """The same layer with the same tensors; timm's `BatchNormAct2d` keeps its dropout and activation."""
        new = cls(layer.num_features, eps=layer.eps, affine=layer.affine)
        new.weight, new.bias = layer.weight, layer.bias
        if layer.running_mean is not None and layer.running_var is not None:
            new.running_mean, new.running_var = layer.running_mean, layer.running_var
        new.drop, new.act = getattr(layer, "drop", new.drop), getattr(layer, "act", new.act)
        return new.train(layer.training)

    def forward(self, x_NF: Tensor) -> Tensor:
        if not self.training:
            y = F.batch_norm(x_NF, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
            return self.act(self.drop(y))
        if self.everyone is not None:
            y, seen_2F = global_batch_norm(x_NF, self.weight, self.bias, eps=self.eps, collectives=self.everyone)
            if self.recording:
                self.recorded.append(seen_2F.expand(self.num_lanes, -1, -1))
            return self.act(self.drop(y))
        y, seen_L2F = self._traced(x_NF) if torch.compiler.is_compiling() else self._normalised(x_NF)
        if self.recording:
            self.recorded.append(seen_L2F)
        return self.act(self.drop(y))

    def _normalised(self, x_NF: Tensor) -> tuple[Tensor, Tensor]:
        """y, and each lane's mean and unbiased variance [L, 2, F]."""
        if self._group_norm_is_faster(x_NF):
            way = _AS_GROUP_NORM
        elif self.num_lanes == 1:
            return self._native(x_NF)
        elif x_NF.is_cuda and x_NF.ndim in (2, 4) and x_NF.numel() > self.num_lanes * self.num_features:
            way = _on_gpu()[0]
        else:
            way = _LANE_BY_LANE
        return _LaneNorm.apply(x_NF, self.weight, self.bias, self.num_lanes, self.eps, way)

    def _group_norm_is_faster(self, x_NF: Tensor) -> bool:
        """For images in bf16 on a CPU with channels last, unless they are tiny."""
        if x_NF.ndim != 4 or x_NF.device.type != "cpu" or x_NF.dtype != torch.bfloat16 or self.weight is None:
            return False
        values = x_NF.numel() // (self.num_lanes * self.num_features)
        return values >= _FAST_GROUP and x_NF.is_contiguous(memory_format=torch.channels_last)

    def _traced(self, x_NF: Tensor) -> tuple[Tensor, Tensor]:
        """As `_normalised`, of what a compiler can look through; compiled, a sum is as accurate as its input's type."""
        values = x_NF.numel() // (self.num_lanes * self.num_features)
        if x_NF.ndim != 4 or self.weight is None or values == 1:
            return self._native(x_NF)
        x = x_NF.to(self.weight.dtype)
        made = _as_group_norm(x, self.weight, self.bias, self.num_lanes, self.eps)
        return made.y_NF.to(x_NF.dtype), made.seen_L2F

    def _native(self, x_NF: Tensor) -> tuple[Tensor, Tensor]:
        """As `_normalised`, by the native layer and with its gradient."""
        seen_L2F = self.running_mean.new_zeros(self.num_lanes, 2, self.num_features)
        lanes = [
            F.batch_norm(lane, seen[0], seen[1], self.weight, self.bias, True, 1.0, self.eps)
            for lane, seen in zip(x_NF.chunk(self.num_lanes), seen_L2F, strict=True)
        ]
        return lanes[0] if len(lanes) == 1 else torch.cat(lanes), seen_L2F

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}"


def use_lane_batch_norm(module: nn.Module, *, everyone: Collectives | None = None) -> nn.Module:
    """Replace every native BatchNorm below `module` by a `LaneBatchNorm` that holds the same tensors.

    Args:
        module: changed in place.
        everyone: normalise the rows of all these workers at once instead of each lane by itself.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            layer = LaneBatchNorm.from_native(child)
            layer.everyone = everyone
            setattr(module, name, layer)
        else:
            use_lane_batch_norm(child, everyone=everyone)
    return module


def lane_batch_norms(module: nn.Module) -> list[LaneBatchNorm]:
    """All lane BatchNorm layers in a fixed order, shared ones once."""
    return [layer for layer in module.modules() if isinstance(layer, LaneBatchNorm)]


@contextmanager
def lane_groups(layers: Iterable[LaneBatchNorm], num_lanes: int, *, record: bool) -> Generator[None]:
    """Within: forward calls hold `num_lanes` lanes, and their statistics are recorded or not."""
    layers = list(layers)
    for layer in layers:
        layer.num_lanes, layer.recording = num_lanes, record
    try:
        yield
    finally:
        for layer in layers:
            layer.recording = False


def take_statistics(layers: Iterable[LaneBatchNorm], num_lanes: int) -> Tensor:
    """Collect and clear what was recorded for one chunk of lanes.

    A layer that was called several times (once per view) gives the mean over its calls; one that was not called gives
    its present running statistics, so that committing them changes nothing but rounding.

    Returns:
        [lanes, 2 · sum of features].
    """
    parts: list[Tensor] = []
    for layer in layers:
        if layer.recorded:
            mean = layer.recorded[0] if len(layer.recorded) == 1 else torch.stack(layer.recorded).mean(0)
        else:
            mean = torch.stack([layer.running_mean, layer.running_var]).expand(num_lanes, -1, -1)
        parts.append(mean.reshape(num_lanes, -1))
        layer.recorded = []
    return torch.cat(parts, 1)


@torch.no_grad()
def commit_statistics(layers: Iterable[LaneBatchNorm], statistics: Tensor, *, keep: Tensor) -> None:
    """running ← 0.9 · running + 0.1 · mean over lanes.

    Args:
        layers: as given to `take_statistics`.
        statistics: [all lanes, 2 · sum of features] in lane order.
        keep: bool []; where it is false nothing changes, whatever the statistics are.
    """
    mean = (statistics.sum(0) / len(statistics)).masked_fill_(~keep, 0)
    momentum = _MOMENTUM * keep.to(mean.dtype)
    running = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
    seen = mean.split([len(buffer) for buffer in running])
    _FOREACH._foreach_lerp_(running, seen, [momentum] * len(running))
