"""How far does the cost of MAE fall with the mask ratio?

    python benchmarks/mask_ratio.py [--model vit_small] [--batch 16] [--rounds 5]

Forward passes of the encoder on visible patches, and whole `embed` with backward, at several ratios and with the mask
token in the encoder (which sees all patches); medians over rounds in which all take turns, relative to ratio 0.25.
"""

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
import yaml

from ssl_core.methods import build_method
from ssl_core.methods.mae import MAE, MAEConfig
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.types import ViewBatch
from ssl_core.views.recipes import recipe

RATIOS = (0.25, 0.5, 0.75, 0.9)


def model_config(name: str) -> ModelConfig:
    """One of configs/model/."""
    with open(f"configs/model/{name}.yaml", encoding="utf-8") as file:
        values: dict[str, Any] = yaml.safe_load(file)
    return ModelConfig(**{key: value for key, value in values.items() if key not in ("mean", "std")})


def contestants(model: ModelConfig, batch: int) -> dict[str, Callable[[], None]]:
    """Name → one forward pass, or one forward and backward pass."""
    generator = torch.Generator().manual_seed(0)
    size = model.image_size
    images = torch.rand(batch, model.in_chans, size, size, generator=generator)
    seen = ViewBatch(images={"views": images}, draws=torch.arange(batch), num_lanes=1, step=0, epoch=0)
    calls: dict[str, Callable[[], None]] = {}
    for ratio, token in [*((ratio, False) for ratio in RATIOS), (0.75, True)]:
        config = MAEConfig(mask_ratio=ratio, encoder_mask_token=token, decoder_width=128, decoder_depth=1)
        views = recipe("mae", image_size=size, channels=model.in_chans)
        method = build_method("mae", config, encoder=build_encoder(model), recipe=views, seed=0)
        assert isinstance(method, MAE)

        def forward(method: MAE = method) -> None:
            with torch.no_grad():
                method.embed(seen)

        def step(method: MAE = method) -> None:
            method.zero_grad()
            method.embed(seen)["error"].mean().backward()

        name = f"{ratio:.2f}" + (", mask token in the encoder" if token else "")
        calls |= {f"forward {name}": forward, f"forward and backward {name}": step}
    return calls


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    calls = contestants(model_config(arguments.model), arguments.batch)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(arguments.rounds + 1):
        for name, call in calls.items():
            start = perf_counter()
            call()
            if number:  # the first round warms up
                seconds[name].append(perf_counter() - start)
    print(f"{arguments.model}, batch {arguments.batch}, decoder 128 × 1, {torch.get_num_threads()} threads")
    for kind in ("forward", "forward and backward"):
        base = seconds[f"{kind} {RATIOS[0]:.2f}"]
        for name in (name for name in calls if name.removeprefix(kind)[1:2].isdigit()):
            ratio = median(a / b for a, b in zip(seconds[name], base, strict=True))
            print(f"{name}: {1000 * median(seconds[name]):.0f} ms, {ratio:.2f} of ratio {RATIOS[0]}")


if __name__ == "__main__":
    main()
