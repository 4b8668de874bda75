"""A step never makes the host wait for the device: nothing reads a number or needs a shape that depends on values.

Counted on the CPU, where such operations are the same ones and cost nothing; on a GPU what torch sees to wait raises.
"""

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from tiny_runs import GLOBAL_BATCH, build, tiny_run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_core.collectives import Collectives
from ssl_core.methods import METHODS
from ssl_core.train.step import Precision

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "aten.equal", "is_nonzero", "repeat_interleave")
READS = ("item", "tolist", "numpy", "cpu")


class Waits(TorchDispatchMode):
    """Operations that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(part in str(func) for part in WAITS) or ("aten.index" in str(func) and _masks(args)):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def _masks(args: Any) -> bool:
    """Whether a tensor is indexed by one of booleans, which takes as many elements as are true."""
    indices = [one for arg in args if isinstance(arg, list | tuple) for one in arg]
    return any(isinstance(one, Tensor) and one.dtype == torch.bool for one in indices)


def counted(read: Callable[..., Any], seen: list[str]) -> Callable[..., Any]:
    """The same function; `seen` hears of each call."""

    def called(*args: Any) -> Any:
        seen.append(read.__name__)
        return read(*args)

    return called


@pytest.mark.parametrize(("micro_batch", "on_device"), [(None, False), (GLOBAL_BATCH // 4, False), (None, True)])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_reads_nothing_from_the_device(
    monkeypatch: pytest.MonkeyPatch, name: str, micro_batch: int | None, on_device: bool
) -> None:
    run = tiny_run(name)
    step, loader = build(run, Collectives(), precision="fp32", micro_batch=micro_batch, colors_on_device=on_device)
    first, second = loader.stream(0, 2)
    step(first).result()
    with Waits() as waits, monkeypatch.context() as patched:
        for read in READS:
            patched.setattr(Tensor, read, counted(getattr(Tensor, read), waits.seen))
        pending = step(second)
        assert waits.seen == []
        pending.result()
        assert waits.seen == ["tolist"]


def test_the_count_sees_what_waits() -> None:
    with Waits() as waits:
        x = torch.arange(3)
        float(x[1])
        x[x > 1].sum()
    assert [name.split(".")[1] for name in waits.seen] == ["_local_scalar_dense", "index"]


@pytest.fixture
def no_waits() -> Generator[None]:
    """Within: what waits for the GPU raises."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("micro_batch", [None, GLOBAL_BATCH // 4])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_does_not_wait_for_the_gpu(
    request: pytest.FixtureRequest, name: str, micro_batch: int | None, precision: Precision
) -> None:
    step, loader = build(
        tiny_run(name),
        Collectives(),
        precision=precision,
        micro_batch=micro_batch,
        colors_on_device=True,
        device="cuda",
    )
    first, second, third = loader.stream(0, 3)
    for batch in (first, second):  # the optimiser makes its state
        step(batch).result()
    request.getfixturevalue("no_waits")
    pending = step(third)
    with pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device="cuda").item()
    assert pending.result().finite
