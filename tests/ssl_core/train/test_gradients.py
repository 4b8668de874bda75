"""Flat gradients: views into one buffer that backward fills in place, with the parameters' own strides."""

import gc
import weakref
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from ssl_core.collectives import Collectives
from ssl_core.train import gradients as module
from ssl_core.train.gradients import FlatGradients


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(16, 2))
    return made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (overload missing in the stubs)


def test_backward_adds_into_the_buffer() -> None:
    plain, flat = network(), network()
    parameters = list(flat.parameters())
    gradients = FlatGradients(parameters, collectives=Collectives())
    images = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    (plain(images) ** 2).sum().backward()
    for _ in range(2):
        gradients.zero_()
        (flat(images) ** 2).sum().backward()
    gradients.sum_over_workers_()
    start = gradients.buffer.data_ptr()
    end = start + gradients.buffer.numel() * gradients.buffer.element_size()
    for one, other in zip(plain.parameters(), parameters, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
        assert other.grad.stride() == other.stride()
        assert start <= other.grad.data_ptr() < end
    expected = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None]).norm()
    assert torch.allclose(gradients.norm(), expected)
    assert gradients.buffer.numel() == sum(p.numel() for p in parameters)


def test_gradients_do_not_overlap() -> None:
    parameters = list(network().parameters())
    gradients = FlatGradients(parameters, collectives=Collectives())
    for number, parameter in enumerate(parameters):
        assert parameter.grad is not None
        parameter.grad.fill_(number + 1)
    counts = torch.bincount(gradients.buffer.long()).tolist()
    assert counts == [0, *(p.numel() for p in parameters)]


def test_what_nobody_holds_is_freed() -> None:
    parameters = list(network().parameters())
    gradients = FlatGradients(parameters, collectives=TwoWorkers(world=2))
    buffer = weakref.ref(gradients.buffer)
    with gradients.last_backward():
        pass
    del parameters, gradients
    gc.collect()
    assert buffer() is None


@dataclass(frozen=True, kw_only=True)
class TwoWorkers(Collectives):
    """Notes which parts of the buffer are sent when; the other worker has the same gradients."""

    sent: list[str] = field(default_factory=list[str])
    waited: list[int] = field(default_factory=list[int])

    def start_sum_(self, x: Tensor) -> "Doubled":
        self.sent.append(",".join(str(int(value)) for value in x.unique()))
        return Doubled(x, self.waited)


class Doubled:
    def __init__(self, x: Tensor, waited: list[int]) -> None:
        self._x, self._waited = x, waited

    def wait(self) -> None:
        self._x.mul_(2)
        self._waited.append(self._x.numel())


def test_buckets_are_sent_in_a_fixed_order_while_backward_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BUCKET_BYTES", 8)  # of float32: two numbers
    first, second, third, unused = (nn.Parameter(torch.ones(n)) for n in (1, 3, 1, 1))
    two = TwoWorkers(world=2)
    gradients = FlatGradients([first, second, third, unused], collectives=two)

    def half_way(gradient: Tensor) -> None:
        two.sent.append("half way")

    def loss() -> Tensor:
        x = first * 5
        x.register_hook(half_way)
        return (x * second).sum() + 7 * third.sum()

    gradients.zero_()
    loss().backward()
    assert two.sent == ["half way"]  # not the last backward pass of the step
    two.sent.clear()
    gradients.zero_()
    total = loss()
    with gradients.last_backward():
        total.backward()
    assert two.sent == ["half way"]  # the first bucket lacks `unused`, and the order is fixed
    gradients.sum_over_workers_()
    assert two.sent == ["half way", "0,7", "5", "15"]
    assert two.waited == [2, 3, 1]
    assert gradients.buffer.tolist() == [0.0, 14.0, 10.0, 10.0, 10.0, 30.0]

    two.sent.clear()
    gradients.zero_()
    with gradients.last_backward():
        (loss() + 2 * unused.sum()).backward()
    assert [part for part in two.sent if part != "half way"] == ["2,7", "5", "15"]
    assert two.sent.index("2,7") < two.sent.index("half way")
