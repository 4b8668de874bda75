"""One optimiser step, the same way for every method: embed, gather, loss, push back, reduce, commit.

Exact on many workers: every worker takes the gradient of its part of the loss with respect to the rows of *all*
workers; summed over workers, that is the gradient with respect to all rows, of which each takes its own slice back
through its own graph.

Gradient caching (Gao et al., arXiv 2101.06983) is the same walk in two passes: embed all chunks without graph, take the
gradient with respect to the rows, embed chunk by chunk with graph and push the slice that belongs to it. A chunk is
whole lanes, so BatchNorm by lanes does not notice; keyed randomness makes the second pass equal to the first. A loss
that is a mean over samples needs none of this: each chunk's share is pushed back at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ssl_core import rng
from ssl_core.collectives import Collectives
from ssl_core.errors import UserError
from ssl_core.lanes import Lanes
from ssl_core.methods.base import Method, StepInfo, as_module
from ssl_core.nn.backbones import layer_scales
from ssl_core.nn.lane_batch_norm import commit_statistics, lane_batch_norms, lane_groups, take_statistics
from ssl_core.nn.standardise import Standardise
from ssl_core.optim import OptimConfig, build_optimizer, learning_rate
from ssl_core.train.gradients import FlatGradients
from ssl_core.train.profile import span
from ssl_core.train.uploads import Uploads
from ssl_core.types import GlobalRows, LaneBatch, StepResult, ViewBatch
from ssl_core.views.batched_colors import BatchedColors

Precision = Literal["fp64", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """How a step is computed."""

    total_steps: int
    seed: int = 0
    precision: Precision = "fp32"
    micro_batch: int | None = None
    compile: bool = False
    skip_non_finite: bool = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


class PendingStep:
    """A step that the device may still be computing; reading its result waits for it."""

    def __init__(self, batch: LaneBatch, values: Tensor) -> None:
        self._batch = batch
        self._values = values.to("cpu", non_blocking=True)
        self._done = torch.cuda.Event() if values.is_cuda else None
        if self._done is not None:
            self._done.record()

    def result(self) -> StepResult:
        """What the step says, the same on every worker."""
        if self._done is not None:
            self._done.synchronize()
        norm, loss, *signals = self._values.tolist()
        return StepResult(loss=loss, gradient_norm=norm, signals=tuple(signals))

    def trouble(self, result: StepResult) -> str:
        """What to tell a user of a step that is not finite."""
        step = self._batch.step
        norm = f"gradient's norm at step {step} is {result.gradient_norm}" if np.isfinite(result.loss) else None
        samples = self._batch.positions.ravel().tolist()[:8]
        return f"the {norm or f'loss at step {step} is {result.loss}'}; this worker's samples: {samples} …"


@dataclass(frozen=True, kw_only=True)
class _DeviceBatch:
    """A `LaneBatch` on the device."""

    step: int
    epoch: int
    draws: Tensor  # int64 [L, b]
    groups: Mapping[str, Tensor]  # uint8 [L, V, b, H, W, K]
    shuffled_slots: Tensor | None = None  # int64 [L, b]: the samples that the shuffled view shows, if there is one


def why_not_compiled(device: torch.device, collectives: Collectives) -> str | None:
    """Why `torch.compile` does not work on some worker, in one line; None where it works on all."""

    def one_more(x: Tensor) -> Tensor:
        return x + 1

    said = ""
    try:
        torch.compile(one_more)(torch.ones(2, device=device))
    except Exception as error:  # noqa: BLE001 (whatever is missing: a compiler, its headers, Triton)
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return next((text for text in collectives.gather_objects(said) if text), None)


class TrainStep:
    """Owns the optimiser and changes the method's state; gives views their colours where the loader did not (`colors`).

    The host never waits for the device: a step whose loss or gradient is not finite changes nothing, nor does any step
    after it (unless `skip_non_finite`), by a flag on the device; the host hears of it when it reads the step's result.
    """

    def __init__(
        self,
        method: Method,
        config: StepConfig,
        *,
        optim: OptimConfig,
        lanes: Lanes,
        collectives: Collectives,
        device: torch.device,
        colors: BatchedColors | None = None,
    ) -> None:
        self._method, self._config, self._optim, self._colors = method, config, optim, colors
        self._lanes, self._collectives, self._device = lanes, collectives, device
        self._dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self._chunks = list(_chunks(len(lanes.owned), lanes.size, config.micro_batch))
        # for all workers alike, or those with fewer lanes would take part in other reductions than the rest
        self._cached = any(len(list(_chunks(count, lanes.size, config.micro_batch))) > 1 for count in lanes.counts)
        module = as_module(method).to(device=device, dtype=self._dtype)
        if config.precision != "fp64":
            _channels_last(module)
        self.module = module.train()
        self._norms = lane_batch_norms(module)
        if self._cached and any(norm.everyone is not None for norm in self._norms):
            raise UserError("BatchNorm over the global batch needs it in one piece: no micro-batches")
        parameters = [p for p in module.parameters() if p.requires_grad]
        scales = None if optim.layer_decay is None else layer_scales(method.encoder, decay=optim.layer_decay)
        self.optimizer = build_optimizer(optim, parameters, rate_scales=scales)
        self._gradients = FlatGradients(parameters, collectives=collectives)
        self._embed = torch.compile(method.embed, dynamic=False) if config.compile else method.embed
        self._standardise = Standardise(config.mean, config.std, dtype=self._dtype, device=device)
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._upload = Uploads(device)

    def __call__(self, batch: LaneBatch, *, signals: Sequence[float] = ()) -> PendingStep:
        """Take one step.

        Args:
            batch: this worker's lanes.
            signals: numbers that are summed over workers in the same reduction as the loss; as many on every worker.
        """
        with _repeatable():
            return self._step(batch, signals)

    def _step(self, batch: LaneBatch, signals: Sequence[float]) -> PendingStep:
        info = StepInfo(step=batch.step, total_steps=self._config.total_steps)
        with torch.no_grad():
            self._method.before_step(info)
        self._gradients.zero_()
        moved = self._on_device(batch)
        shown = torch.tensor(signals, dtype=torch.float64).to(self._device, non_blocking=True)
        loss, rows, statistics = self._forward_backward(moved)
        with span("reduce"):
            self._gradients.sum_over_workers_()
            said = self._collectives.sum_(torch.cat([loss.double().view(1), shown]))
            if statistics is not None:
                statistics = self._gather(statistics, 1)
        with span("optimiser"):
            norm = self._gradients.norm().double()
            finite = norm.isfinite() & said[0].isfinite()
            self._finite = finite if self._config.skip_non_finite else finite & self._finite
            self._commit(info, rows, statistics)
        return PendingStep(batch, torch.cat([norm.view(1), said]))

    @property
    def encoder(self) -> nn.Module:
        """The method's encoder, as training has it: [N, K, H, W] → [N, D]."""
        return self._method.encoder

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        total, batch = self._config.total_steps, self._lanes.global_batch
        return learning_rate(self._optim, step=step, total_steps=total, global_batch=batch)

    @torch.no_grad()
    def features(self, batch: LaneBatch, *, samples: int) -> Tensor:
        """The encoder's features of some of the global batch's samples, in eval mode; every worker calls it alike.

        Args:
            batch: this worker's lanes.
            samples: how many of the global batch, as many of each lane, rounded up.

        Returns:
            float32 or better [at most 2 views, samples, D], in lane order.
        """
        per_lane = min(self._lanes.size, -(-samples // self._lanes.count))
        some = replace(
            batch,
            draws=batch.draws[:, :per_lane],
            groups={"views": np.ascontiguousarray(batch.groups["views"][:, :2, :per_lane])},
        )
        pixels = self._on_device(some).groups["views"]
        views, encoder = pixels.shape[1], self._method.encoder
        encoder.eval()
        with self._autocast():
            own: Tensor = encoder(self._normalised(pixels))
        encoder.train()
        everyone = self._gather(_accurate(own), views * per_lane)
        return everyone.unflatten(0, (self._lanes.count, views, per_lane)).transpose(0, 1).flatten(1, 2)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._config.precision == "bf16" else nullcontext()

    def _on_device(self, batch: LaneBatch) -> _DeviceBatch:
        with span("to device"):
            draws = self._upload(batch.draws)
            groups = {name: self._upload(pixels) for name, pixels in batch.groups.items()}
        if self._colors is not None:
            with span("colours"):
                groups = self._colors(groups, epoch=batch.epoch, draws=batch.draws)
        return _DeviceBatch(step=batch.step, epoch=batch.epoch, draws=draws, groups=groups)

    def _forward_backward(self, batch: _DeviceBatch) -> tuple[Tensor, GlobalRows, Tensor | None]:
        if self._method.shuffled_view is not None:
            batch = self._with_shuffled_view(batch, self._method.shuffled_view)
        if self._method.per_sample:
            return self._accumulate(batch)
        embedded: list[dict[str, Tensor]] = []
        statistics: list[Tensor] = []
        for chunk in self._chunks:
            with torch.set_grad_enabled(not self._cached):
                embedded.append(self._embed_chunk(batch, chunk, record=True))
            if self._norms:
                statistics.append(take_statistics(self._norms, len(chunk)))
        own = {name: torch.cat([part[name] for part in embedded]) for name in embedded[0]}
        with span("loss"):
            loss, rows, gradients = self._loss_and_row_gradients(own)
        if self._cached:
            self._push_by_chunk(batch, gradients)
        else:
            with span("backward"), self._gradients.last_backward():
                torch.autograd.backward([own[name] for name in gradients], list(gradients.values()))
        return loss, rows, torch.cat(statistics) if statistics else None

    def _accumulate(self, batch: _DeviceBatch) -> tuple[Tensor, GlobalRows, Tensor | None]:
        """A mean over samples, chunk by chunk: a chunk's loss weighs as much as its share of the lanes."""
        total = torch.zeros((), dtype=self._dtype, device=self._device)
        statistics: list[Tensor] = []
        for chunk in self._chunks:
            part = {name: _accurate(row) for name, row in self._embed_chunk(batch, chunk, record=True).items()}
            if self._norms:
                statistics.append(take_statistics(self._norms, len(chunk)))
            rows = GlobalRows(rows=part, num_lanes=len(chunk), own_lanes=range(len(chunk)))
            loss = self._method.loss(rows) * (len(chunk) / self._lanes.count)
            with span("backward"), self._last_backward(chunk):
                loss.backward()
            total += loss.detach()
        return total, self._global_rows({}), torch.cat(statistics) if statistics else None

    def _last_backward(self, chunk: range) -> AbstractContextManager[None]:
        return self._gradients.last_backward() if chunk == self._chunks[-1] else nullcontext()

    def _with_shuffled_view(self, batch: _DeviceBatch, view: int) -> _DeviceBatch:
        """The batch with the samples of one view regrouped across all lanes."""
        counts = [count * self._lanes.size for count in self._lanes.counts]
        bits = rng.random_bits(rng.key(self._config.seed, "shuffle", batch.step), self._lanes.global_batch)
        order = torch.from_numpy(np.argsort(bits, kind="stable"))
        pixels = batch.groups["views"][:, view].flatten(0, 1)
        mine = self._collectives.exchange_rows(pixels, order, counts)
        views = list(batch.groups["views"].unbind(1))
        views[view] = mine.view_as(views[view])
        groups = {**batch.groups, "views": torch.stack(views, 1)}
        slots = order.split(counts)[self._lanes.rank].view(batch.draws.shape)
        return replace(batch, groups=groups, shuffled_slots=slots.to(self._device, non_blocking=True))

    def _push_by_chunk(self, batch: _DeviceBatch, gradients: Mapping[str, Tensor]) -> None:
        """Second pass of gradient caching: embed each chunk with graph and push its slice of the rows' gradient."""
        for chunk in self._chunks:
            part = self._embed_chunk(batch, chunk, record=False)
            pushed = [name for name in gradients if part[name].requires_grad]
            slices: list[Tensor] = []
            for name in pushed:
                per_lane = len(gradients[name]) // len(self._lanes.owned)
                slices.append(gradients[name][chunk.start * per_lane : chunk.stop * per_lane])
            with span("backward"), self._last_backward(chunk):
                torch.autograd.backward([part[name] for name in pushed], slices)

    def _embed_chunk(self, batch: _DeviceBatch, chunk: range, *, record: bool) -> dict[str, Tensor]:
        with span("forward"), lane_groups(self._norms, len(chunk), record=record), self._autocast():
            return dict(self._embed(self._view_batch(batch, chunk)))

    def _view_batch(self, batch: _DeviceBatch, chunk: range) -> ViewBatch:
        lanes = slice(chunk.start, chunk.stop)
        images = {name: self._normalised(pixels[lanes]) for name, pixels in batch.groups.items()}
        slots = batch.shuffled_slots
        return ViewBatch(
            images=images,
            draws=batch.draws[lanes].flatten(),
            num_lanes=len(chunk),
            step=batch.step,
            epoch=batch.epoch,
            seed=self._config.seed,
            shuffled_slots=None if slots is None else slots[lanes].flatten(),
        )

    def _normalised(self, pixels: Tensor) -> Tensor:
        """uint8 [L, V, b, H, W, K] to standardised float [L · V · b, K, H, W], channels last in memory."""
        return self._standardise(pixels.flatten(0, 2)).permute(0, 3, 1, 2)

    def _loss_and_row_gradients(self, own: Mapping[str, Tensor]) -> tuple[Tensor, GlobalRows, dict[str, Tensor]]:
        """This worker's part of the loss, the global rows, and the whole loss's gradient on own rows."""
        accurate = {name: _accurate(row.detach()) for name, row in own.items()}
        everyone = {name: self._gather(row, len(row) // len(self._lanes.owned)) for name, row in accurate.items()}
        # with a graph in one pass rows say themselves whether they need a gradient; without one, every float row may
        pushed = [n for n, row in own.items() if row.requires_grad or (self._cached and row.is_floating_point())]
        for name in pushed:
            everyone[name].requires_grad_()
        rows = self._global_rows(everyone)
        with torch.enable_grad():
            loss = self._method.loss(rows)
        found = torch.autograd.grad(loss, [everyone[name] for name in pushed], allow_unused=True)
        gradients: dict[str, Tensor] = {}
        for name, gradient in zip(pushed, found, strict=True):
            if gradient is not None:  # pyright: ignore[reportUnnecessaryComparison] (None where the loss does not use it)
                # a copy: autograd may give the same tensor, or one without memory of its own, for several rows
                summed = self._collectives.sum_(gradient.clone(memory_format=torch.contiguous_format))
                gradients[name] = summed[rows.own(name)].to(own[name].dtype)
        detached = {name: row.detach() for name, row in everyone.items()}
        return loss.detach(), self._global_rows(detached), gradients

    def _global_rows(self, rows: Mapping[str, Tensor]) -> GlobalRows:
        return GlobalRows(rows=rows, num_lanes=self._lanes.count, own_lanes=self._lanes.owned)

    def _gather(self, rows: Tensor, per_lane: int) -> Tensor:
        return self._collectives.gather_rows(rows, [count * per_lane for count in self._lanes.counts])

    @torch.no_grad()
    def _commit(self, info: StepInfo, rows: GlobalRows, statistics: Tensor | None) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(info.step) * group["rate_scale"]
        self._gradients.clear_(unless=self._finite)
        if self._optim.clip_norm is not None:
            self._gradients.clip_(self._optim.clip_norm)
        self.optimizer.found_inf = (~self._finite).float()  # pyright: ignore[reportAttributeAccessIssue] (torch's seam)
        self.optimizer.step()
        if statistics is not None:
            commit_statistics(self._norms, statistics, keep=self._finite)
        self._method.after_step(rows, self._finite)

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimiser's tensors by `<parameter>/<key>`."""
        names = self._parameter_names()
        state: dict[int, dict[str, Any]] = self.optimizer.state_dict()["state"]
        return {f"{names[i]}/{key}": value for i, entry in state.items() for key, value in entry.items()}

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `optimizer_state` returned."""
        index = {name: i for i, name in enumerate(self._parameter_names())}
        parameters = dict(self.module.named_parameters())
        packed = self.optimizer.state_dict()
        packed["state"] = {}
        for name, tensor in tensors.items():
            parameter, _, key = name.rpartition("/")
            if tensor.shape == parameters[parameter].shape:  # files hold no strides: take the parameter's
                tensor = torch.empty_like(parameters[parameter]).copy_(tensor)
            packed["state"].setdefault(index[parameter], {})[key] = tensor
        self.optimizer.load_state_dict(packed)

    def _parameter_names(self) -> list[str]:
        """Names in the optimiser's order."""
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        return [names[id(p)] for group in self.optimizer.param_groups for p in group["params"]]


def _repeatable() -> AbstractContextManager[None]:
    """Within: cuDNN repeats itself to the bit, and float32 is not rounded to TF32, whose 10 bits the law would see."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def _accurate(rows: Tensor) -> Tensor:
    """Real rows in float32 or better; whole numbers as they are."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32)) if rows.is_floating_point() else rows


def _chunks(num_lanes: int, lane_size: int, micro_batch: int | None) -> Iterator[range]:
    """This worker's lanes cut into chunks of at most `micro_batch` samples."""
    per_chunk = num_lanes if micro_batch is None else max(1, micro_batch // lane_size)
    for start in range(0, num_lanes, per_chunk):
        yield range(start, min(start + per_chunk, num_lanes))


def _channels_last(module: nn.Module) -> None:
    """Lay 4-D weights out with channels last, which convolutions on CPU and GPU prefer."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
