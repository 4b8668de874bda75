"""SimCLR end to end against lightly's own loop: images per second, and k-NN after the same time.

    python benchmarks/peer_loop.py <CIFAR-10 train> <val> [--minutes 3] [--rounds 2] [--precision bf16]

Needs the extra `benchmark`.

The same encoder (`resnet_micro`, 32 px), batch 512, temperature, projector, optimiser at a constant rate, precision
(bf16 where the machine has instructions for it, else fp32), channels last, data and threads. Ours is `run_worker`,
eager and compiled; lightly's is its `SimCLRTransform` in a DataLoader with two workers, its `NTXentLoss` and
`SimCLRProjectionHead`, as in its examples. Each runs in a process of its own, in turns; the first steps (compilation)
count for k-NN, not for images per second. k-NN is the training's online one, with 20,000 images.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.config import compose
from pipelines.plan import Plan, make_plan
from pipelines.pretrain import bf16_is_fast
from pipelines.worker import keep_freed_memory, online_knn, run_worker
from pipelines.worker_process import Job
from ssl_core.data.reader import Reader
from ssl_core.torchvision_operators import declare_missing
from ssl_core.train.checkpoint import CheckpointStore
from ssl_core.train.context import InProcessContext
from ssl_core.train.saved_steps import CHECKPOINTS

BATCH, RATE, TEMPERATURE = 512, 1.0, 0.2
WARM_STEPS = 5
STRENGTH = 0.5  # SimCLR's colour jitter for small images


def plan_of(arguments: argparse.Namespace) -> tuple[dict[str, Any], Plan]:
    """The recipe at a constant rate, for a time instead of a number of steps."""
    values = compose(
        "pretrain",
        [
            "experiment=simclr_cifar10",
            f"data.train={arguments.train}",
            f"data.val={arguments.val}",
            f"train.global_batch={BATCH}",
            "train.steps=1000000",
            "train.workers=1",
            f"train.precision={arguments.precision}",
            f"train.compile={str(arguments.contestant == 'compiled').lower()}",
            f"method.temperature={TEMPERATURE}",
            "views.image_size=32",
            f"optim.base_rate={RATE}",
            "optim.scaling=none",
            "optim.warmup=0",
            "probe.every=null",
            "probe.online_train=20000",
            "probe.online_val=8000",
        ],
    )
    return values, make_plan(values, workers=1)


@dataclass(frozen=True, kw_only=True)
class TimedContext(InProcessContext):
    """A run that asks to stop when its time is over, and says when each step began."""

    seconds: float
    began: list[float] = field(default_factory=list[float])

    def should_stop(self) -> bool:
        self.began.append(monotonic())
        return self.began[-1] - self.began[0] > self.seconds


def rate_of(began: list[float]) -> float:
    """Images per second, from when each step began."""
    return (len(began) - 1 - WARM_STEPS) * BATCH / (began[-1] - began[WARM_STEPS])


def ours(arguments: argparse.Namespace) -> tuple[float, nn.Module]:
    """Images per second and the encoder."""
    values, plan = plan_of(arguments)
    with tempfile.TemporaryDirectory() as folder:
        context = TimedContext(folder=Path(folder), seconds=60 * arguments.minutes)
        run_worker(Job(config=values, folder=folder, attempt=1), context)
        checkpoint, _ = CheckpointStore(Path(folder) / CHECKPOINTS).newest_readable()
        assert checkpoint is not None
        encoder = plan.random_encoder()
        prefix = "encoder."
        state = {key.removeprefix(prefix): one for key, one in checkpoint.model.items() if key.startswith(prefix)}
        encoder.load_state_dict(state, strict=False)  # native BatchNorm counts batches, ours does not
    return rate_of(context.began), encoder


class Pictures(torch.utils.data.Dataset[Any]):
    """CIFAR-10 as a torchvision user has it: decoded images in memory, a transform on each."""

    def __init__(self, reader: Reader, transform: Any) -> None:
        from PIL import Image

        self._images = [Image.fromarray(reader.image(position)) for position in range(reader.num_samples)]
        self._transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Any:
        return self._transform(self._images[index])


def lightly(arguments: argparse.Namespace) -> tuple[float, nn.Module]:
    """The loop of lightly's SimCLR example."""
    declare_missing()
    transforms, losses, heads = (import_module(f"lightly.{name}") for name in ("transforms", "loss", "models.modules"))
    _, plan = plan_of(arguments)
    torch.set_num_threads(2)
    transform = transforms.SimCLRTransform(
        input_size=32,
        cj_strength=STRENGTH,
        min_scale=0.2,
        gaussian_blur=0.0,
        normalize={"mean": list(plan.mean), "std": list(plan.std)},
    )
    loader = torch.utils.data.DataLoader(
        Pictures(Reader(plan.train_data, channels=3), transform),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
    )
    encoder = plan.random_encoder()
    widths = plan.config.method["projector"]
    head = heads.SimCLRProjectionHead(encoder.num_features, widths[0], widths[1], batch_norm=False)
    model = nn.Sequential(encoder, head).to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue] (stubs)
    criterion = losses.NTXentLoss(temperature=TEMPERATURE)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9)
    began: list[float] = []
    for views in endless(loader):
        began.append(monotonic())
        if began[-1] - began[0] > 60 * arguments.minutes:
            break
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
            z0, z1 = (model(view.to(memory_format=torch.channels_last)) for view in views)
        loss: Tensor = criterion(z0.float(), z1.float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return rate_of(began), encoder


def endless(loader: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


def contest(arguments: argparse.Namespace) -> None:
    """One contestant, in this process."""
    keep_freed_memory()
    rate, encoder = lightly(arguments) if arguments.contestant == "lightly" else ours(arguments)
    _, plan = plan_of(arguments)
    knn = online_knn_of(plan)(encoder)["knn_online"]
    print(json.dumps({"images_per_second": rate, "knn": knn}))


def online_knn_of(plan: Plan) -> Any:
    """The curve's k-NN, whatever the plan says of its interval."""
    from dataclasses import replace

    probed = replace(plan, config=replace(plan.config, probe=replace(plan.config.probe, every=1)))
    return online_knn(probed, InProcessContext(folder=Path()))


def main() -> None:
    """Run all in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16" if bf16_is_fast() else "fp32")
    parser.add_argument("--contestant", choices=["eager", "compiled", "lightly"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contestant:
        contest(arguments)
        return
    found: dict[str, list[dict[str, float]]] = {"eager": [], "compiled": [], "lightly": []}
    for _ in range(arguments.rounds):
        for name, results in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--contestant", name]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            results.append(json.loads(said.splitlines()[-1]))
            print(f"{name}: {results[-1]['images_per_second']:.0f} images/s, k-NN {results[-1]['knn']:.3f}", flush=True)
    for name in ("eager", "compiled"):
        pairs = list(zip(found[name], found["lightly"], strict=True))
        faster = median(a["images_per_second"] / b["images_per_second"] for a, b in pairs)
        better = median(a["knn"] - b["knn"] for a, b in pairs)
        what = f"{name} / lightly, {arguments.precision}"
        print(f"{what}: {faster:.2f}, k-NN {100 * better:+.1f} points after {arguments.minutes:g} minutes")


if __name__ == "__main__":
    main()
