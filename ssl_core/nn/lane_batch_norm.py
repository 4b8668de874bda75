"""BatchNorm that normalises each lane by itself, as a GPU per lane would, whatever number of workers there is.

Or the whole global batch at once, where `use_lane_batch_norm` is given the workers to ask (`train.bn=global`).

Shapes: N rows = lanes · rows a lane, rows lie lane-major; F features; B = rows of one lane.

The native kernel runs on each lane's contiguous rows: that is within 10 % of one native call, where the obvious
`var_mean` over a [lanes, B, F, …] view is several times slower on a CPU. Running statistics are not touched in
forward: the layer records every lane's (mean, unbiased variance), and the engine commits their mean over all lanes of
all workers once per step, so that they do not depend on the number of workers or on how a step was cut into chunks.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssl_core.collectives import Collectives
from ssl_core.nn.global_batch_norm import global_batch_norm

_MOMENTUM = 0.1  # the weight of a step in the running statistics


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
        seen = self.running_mean.new_zeros(self.num_lanes, 2, self.num_features)
        lanes = [
            # momentum 1.0: the kernel writes this lane's mean and unbiased variance into `seen`
            F.batch_norm(lane, seen[i, 0], seen[i, 1], self.weight, self.bias, True, 1.0, self.eps)
            for i, lane in enumerate(x_NF.chunk(self.num_lanes))
        ]
        if self.recording:
            self.recorded.append(seen)
        y = lanes[0] if len(lanes) == 1 else torch.cat(lanes)
        return self.act(self.drop(y))

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
            mean = torch.stack(layer.recorded).mean(0)
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
    start = 0
    for layer in layers:
        mean_2F = mean[start : start + 2 * layer.num_features].view(2, -1)
        layer.running_mean.lerp_(mean_2F[0], momentum)
        layer.running_var.lerp_(mean_2F[1], momentum)
        start += 2 * layer.num_features
