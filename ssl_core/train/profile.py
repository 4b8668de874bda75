"""Where a step's time goes: a torch profiler trace and a table, from a few steps of the worker that asks for them."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from ssl_core.storage.local import publish_bytes
from ssl_core.types import LaneBatch

PROFILE = "profile"
_SKIPPED_STEPS, _STEPS = 3, 5

Part = Literal["data", "to device", "colours", "forward", "loss", "backward", "reduce", "optimiser"]
PARTS: tuple[Part, ...] = ("data", "to device", "colours", "forward", "loss", "backward", "reduce", "optimiser")


@contextmanager
def span(name: Part) -> Generator[None]:
    """Within: a part of a step; without a profiler it costs microseconds."""
    with record_function(f"step: {name}"):
        yield


def profiled(batches: Iterator[LaneBatch], folder: Path) -> Generator[LaneBatch]:
    """The batches; what is done with some of the first ones is recorded.

    Writes <folder>/profile/trace.json (for chrome://tracing or ui.perfetto.dev) and steps.md, unless there are too few.
    """

    def write(profiler: Any) -> None:
        if not any(event.name == "step: optimiser" for event in profiler.events()):
            return
        (folder / PROFILE).mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(folder / PROFILE / "trace.json"))
        publish_bytes(folder / PROFILE / "steps.md", table(profiler.events()).encode())

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    plan = schedule(skip_first=_SKIPPED_STEPS, wait=0, warmup=1, active=_STEPS, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write) as profiler:
        for batch in batches:
            yield batch
            profiler.step()


def table(events: Any) -> str:
    """Milliseconds of the host and of the device by part, as Markdown: means over the steps that were recorded."""
    spans = {name: [event for event in events if event.name == f"step: {name}"] for name in PARTS}
    steps = max(1, len(spans["optimiser"]))
    ranges = [event.time_range for found in spans.values() for event in found]
    whole = max((r.end for r in ranges), default=0.0) - min((r.start for r in ranges), default=0.0)
    lines = ["| part of a step | ms of the host | share | ms of the device |", "| --- | --- | --- | --- |"]
    counted = 0.0
    for name, found in spans.items():
        if name == "colours" and not found:
            continue  # the loader gave the views theirs
        host, device = (sum(getattr(event, key) for event in found) for key in ("cpu_time_total", "device_time_total"))
        counted += host
        lines.append(_row(name, host, whole, device, steps))
    lines.append(_row("rest", whole - counted, whole, 0.0, steps))
    return "\n".join([*lines, _row("whole", whole, whole, 0.0, steps)]) + "\n"


def _row(name: str, host_us: float, whole_us: float, device_us: float, steps: int) -> str:
    device = f"{device_us / steps / 1000:.1f}" if device_us else ""
    return f"| {name} | {host_us / steps / 1000:.1f} | {host_us / max(whole_us, 1e-9):.1%} | {device} |"
