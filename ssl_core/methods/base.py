"""What a method is, and what the engine does with it.

A method owns networks and two functions. `embed` says how views become rows; it works per sample but for normalisation
layers, and is where compute and memory are. `loss` says how the rows of the *global* batch become a number; it is
cross-sample and cheap. Between the two the engine gathers rows in lane order; afterwards it sums the gradient of every
worker's partial loss with respect to all rows and pushes each worker's slice back through its own `embed`. So a method
never talks to other workers, and the same code is exact on any number of them, in one piece or in micro-batches.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn

from ssl_core.data.lane_views import Recipe
from ssl_core.errors import UserError
from ssl_core.losses import MIN_TEMPERATURE
from ssl_core.nn.backbones import Encoder
from ssl_core.types import GlobalRows, ViewBatch


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """Where in the run a step is."""

    step: int
    total_steps: int


@runtime_checkable
class Method(Protocol):
    """A self-supervised method; an `nn.Module` whose parameters and buffers are the state that a checkpoint holds.

    Parameters with `requires_grad` are optimised; others (a momentum encoder) are the method's own to change in the
    hooks.
    """

    encoder: Encoder
    """What is exported and probed."""
    recipe: Recipe
    """How a sample becomes views."""
    per_sample: bool
    """Whether `loss` is a mean over samples: then nothing is gathered and micro-batches simply accumulate."""
    shuffled_view: int | None
    """View of the group "views" whose samples are regrouped across the lanes of all workers by a permutation keyed by
    (seed, step), as MoCo's keys are; None where nothing is regrouped."""

    def embed(self, batch: ViewBatch) -> Mapping[str, Tensor]:
        """Rows of these lanes, by name.

        Args:
            batch: whole lanes.

        Returns:
            Tensors [num_lanes · rows per lane, …], lane-major. Rows that need no gradient (keys of a momentum encoder)
            carry none.
        """
        ...

    def loss(self, rows: GlobalRows) -> Tensor:
        """This worker's part of the loss: the sum of the parts over workers is the loss of the global batch.

        A sum over own rows does this by itself; a statistic of the whole batch (Barlow Twins) is weighted by the
        worker's share of rows. A method that is `per_sample` is shown some lanes as if they were the whole batch.
        """
        ...

    def before_step(self, info: StepInfo) -> None:
        """Called without graph before `embed`: momentum updates."""
        ...

    def after_step(self, rows: GlobalRows, keep: Tensor) -> None:
        """Called without graph after the optimiser: queues and centres, from the rows of the global batch.

        Args:
            rows: as `loss` saw them, detached.
            keep: bool [] on the device, whether the step counts: where it is false (a loss that is not finite) nothing
                may change. It is not to be read by the host, which would wait for the device at every step.
        """
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As `nn.Module.parameters`."""
        ...


def as_module(method: Method) -> nn.Module:
    """The method as the `nn.Module` that it is."""
    assert isinstance(method, nn.Module), f"{type(method).__name__} must be an nn.Module"
    return cast(nn.Module, method)


def refuse_temperature(temperature: float) -> None:
    """Refuse a temperature that the contrastive losses do not take."""
    if not temperature >= MIN_TEMPERATURE:
        raise UserError(f"method.temperature={temperature}: use at least {MIN_TEMPERATURE:.4f}")
