"""Flat gradients: views into one buffer that backward fills in place, with the parameters' own strides."""

import torch
from torch import nn

from ssl_core.collectives import Collectives
from ssl_core.train.gradients import FlatGradients


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(16, 2))
    return made.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (overload missing in the stubs)


def test_backward_adds_into_the_buffer() -> None:
    plain, flat = network(), network()
    parameters = list(flat.parameters())
    gradients = FlatGradients(parameters)
    images = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    (plain(images) ** 2).sum().backward()
    for _ in range(2):
        gradients.zero_()
        (flat(images) ** 2).sum().backward()
    gradients.sum_over_workers_(Collectives())
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
    gradients = FlatGradients(parameters)
    for number, parameter in enumerate(parameters):
        assert parameter.grad is not None
        parameter.grad.fill_(number + 1)
    counts = torch.bincount(gradients.buffer.long()).tolist()
    assert counts == [0, *(p.numel() for p in parameters)]
