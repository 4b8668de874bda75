"""What does BatchNorm by lanes cost a whole encoder, against the native layer on the same tensors?

    python benchmarks/batch_norm.py [--lanes 8] [--precision bf16] [--rounds 20] [--compile]

`resnet_micro` at 32 px, forward and backward, in turns in one process: native BatchNorm, BatchNorm by lanes, and
BatchNorm over the global batch. Prints medians, and medians of the paired ratios to the native one.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from pipelines.config import compose
from pipelines.pretrain import bf16_is_fast
from pipelines.worker import keep_freed_memory
from ssl_core.collectives import Collectives
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.nn.lane_batch_norm import lane_batch_norms, lane_groups, take_statistics, use_lane_batch_norm


def encoder() -> nn.Module:
    """`resnet_micro`, channels last."""
    model = compose("pretrain", ["model=resnet_micro"])["model"]
    config = ModelConfig(**{key: value for key, value in model.items() if key not in ("mean", "std")})
    return build_encoder(config, seed=0).to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue] (stubs)


def turn(module: nn.Module, images: Tensor, *, lanes: int, bf16: bool, compiled: bool) -> Callable[[], None]:
    """Forward and backward of one encoder, as the engine calls it."""
    norms = lane_batch_norms(module)
    called = torch.compile(module, dynamic=False) if compiled else module

    def run() -> None:
        module.zero_grad()
        low = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
        with lane_groups(norms, lanes, record=True), low:
            features: Tensor = called(images)
        features.float().square().mean().backward()
        if norms:
            take_statistics(norms, lanes)

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16" if bf16_is_fast() else "fp32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    images = torch.randn(arguments.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    modules = {
        "native": encoder(),
        "lanes": use_lane_batch_norm(encoder()),
        "global": use_lane_batch_norm(encoder(), everyone=Collectives()),
    }
    options = {"lanes": arguments.lanes, "bf16": arguments.precision == "bf16", "compiled": arguments.compile}
    turns = {name: turn(module, images, **options) for name, module in modules.items()}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(arguments.rounds + 3):
        for name, run in turns.items():
            start = perf_counter()
            run()
            seconds[name].append(perf_counter() - start)
    how = f"{arguments.precision}, {'compiled' if arguments.compile else 'eager'}, {arguments.lanes} lanes"
    print(f"resnet_micro, batch {arguments.batch} at 32 px, {how}:", end="")
    for name, times in seconds.items():
        ratio = median(a / b for a, b in zip(times[3:], seconds["native"][3:], strict=True))
        print(f" {name} {1000 * median(times[3:]):.0f} ms ({ratio:.3f})", end="")
    print()


if __name__ == "__main__":
    main()
