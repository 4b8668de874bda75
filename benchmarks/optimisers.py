"""What does an optimiser step cost, against torch's foreach AdamW on the same parameters?

    python benchmarks/optimisers.py [--model vit_base] [--rounds 20] [--threads 2]

Each of ours as a run has it: gradients in one flat buffer, the finite flag, norm and, with --clip, clipping. In turns
in one process; prints medians, and medians of the paired ratios to torch's.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any, Literal, get_args

import torch
from torch import nn

from pipelines.config import compose
from pipelines.worker import keep_freed_memory
from ssl_core.collectives import Collectives
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.optim import OptimConfig, build_optimizer
from ssl_core.train.gradients import FlatGradients

Ours = Literal["lars", "sgd", "adamw"]


def encoder(model: str) -> nn.Module:
    """A model by its named config."""
    values = compose("pretrain", [f"model={model}"])["model"]
    return build_encoder(ModelConfig(**{key: value for key, value in values.items() if key not in ("mean", "std")}))


def our_step(model: str, name: Ours, clip_norm: float | None) -> Callable[[], Any]:
    """From reduced gradients to changed weights."""
    parameters = list(encoder(model).parameters())
    optimizer: Any = build_optimizer(OptimConfig(name=name, clip_norm=clip_norm), parameters)
    gradients = FlatGradients(parameters, collectives=Collectives())
    gradients.buffer.normal_()

    def step() -> None:
        finite = gradients.norm().isfinite()
        gradients.clear_(unless=finite)
        if clip_norm is not None:
            gradients.clip_(clip_norm)
        optimizer.found_inf = (~finite).float()
        optimizer.step()

    return step


def torch_step(model: str) -> Callable[[], Any]:
    """torch's foreach AdamW by itself."""
    parameters = list(encoder(model).parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return torch.optim.AdamW(parameters, lr=0.0, foreach=True).step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base")
    parser.add_argument("--clip", type=float)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    steps: dict[str, Callable[[], Any]] = {"torch's foreach AdamW": torch_step(arguments.model)}
    steps |= {name: our_step(arguments.model, name, arguments.clip) for name in get_args(Ours)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds + 3):
        for name, step in steps.items():
            start = perf_counter()
            step()
            seconds[name].append(perf_counter() - start)
    base = seconds["torch's foreach AdamW"][3:]
    print(arguments.model, end=":")
    for name, times in seconds.items():
        ratio = median(a / b for a, b in zip(times[3:], base, strict=True))
        print(f" {name} {1000 * median(times[3:]):.1f} ms ({ratio:.2f})", end="")
    print()


if __name__ == "__main__":
    main()
