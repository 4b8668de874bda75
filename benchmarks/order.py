"""How well does the order mix, and what does it cost?

    python benchmarks/order.py                                     mixing, for several data.block
    python benchmarks/order.py --cost                              time and memory, for 10⁹ samples in 10⁵ shards
    python benchmarks/order.py [--cost] --shards 200 --samples 5000 --batch 4096

Mixing, over the batches of an epoch: how far apart in manifest order the shards of neighbours in a lane are on average,
and which share of the pairs in a lane, and in the global batch, come from the same shard; each beside what a uniform
shuffle of all samples gives. A lane is what BatchNorm sees, the global batch what a contrastive loss sees.

Cost, in a process of its own: seconds and growth of the peak of resident memory for an epoch's order, for 100 batches
of it, for reaching the last step; then seconds of one batch. Memory is counted from after the imports, and with the
manifest's array of samples.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from pipelines.pretrain_config import DataConfig
from ssl_core.data.order import EpochOrder
from ssl_core.lanes import Lanes

Ints = np.ndarray[Any, np.dtype[np.int64]]


def mixing(batches_KCb: Ints, shards: int) -> tuple[float, float, float]:
    """Distance of neighbours, same-shard pairs in a lane and in a batch; `batches_KCb` holds shard numbers."""
    distance = np.abs(np.diff(batches_KCb, axis=2)).mean() / shards
    lanes = batches_KCb.reshape(-1, batches_KCb.shape[2])
    return float(distance), same_pairs(lanes), same_pairs(batches_KCb.reshape(len(batches_KCb), -1))


def same_pairs(rows_RN: Ints) -> float:
    """The share of pairs within a row that are equal, over all rows."""
    row, size = np.arange(len(rows_RN))[:, None], rows_RN.shape[1]
    _, counts = np.unique(row * (rows_RN.max() + 1) + rows_RN, return_counts=True)
    return float((counts * (counts - 1)).sum() / (len(rows_RN) * size * (size - 1)))


def print_mixing(shards: int, samples: int, lanes: Lanes) -> None:
    """One line a block size, after that of a uniform shuffle."""
    print(f"{shards:,} shards of {samples:,} samples, batches of {lanes.global_batch} in {lanes.count} lanes")
    print(f"{'':<24}{'distance of neighbours':>24}{'same shard in a lane':>24}{'same shard in a batch':>24}")
    total = shards * samples
    shape = (min(200, total // lanes.global_batch), lanes.count, lanes.size)
    shuffled = np.random.default_rng(0).permutation(total)[: np.prod(shape)].reshape(shape) // samples
    uniform = mixing(shuffled, shards)
    print(f"{'uniform shuffle':<24}" + "".join(f"{value:>24.5f}" for value in uniform))
    default = DataConfig().block
    for block in sorted({1, 1024, default, 8 * default, total}):
        order = EpochOrder(
            np.full(shards, samples), seed=0, epoch=0, num_lanes=lanes.count, lane_size=lanes.size, block=block
        )
        steps = np.linspace(0, order.steps - 1, shape[0]).astype(int).tolist()
        seen = mixing(np.stack([order.positions(step, range(lanes.count)) for step in steps]) // samples, shards)
        name = f"block {block:,}" + (" (default)" if block == default else "")
        columns = (f"{value:.5f} = {value / even:.2f}" for value, even in zip(seen, uniform, strict=True))
        print(f"{name:<24}" + "".join(f"{text:>24}" for text in columns))


def resident_kib(name: str) -> int:
    """`VmRSS` or `VmHWM` of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def cost(shards: int, samples: int, lanes: Lanes) -> list[str]:
    """What `--cost` prints; for a process of its own."""
    said: list[str] = []
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_kib("VmRSS")

    def measure(what: str, call: Callable[[], Any]) -> Any:
        start = perf_counter()
        result = call()
        seconds = perf_counter() - start
        said.append(f"{what:<32}{seconds:>10.4f} s{(resident_kib('VmHWM') - before) / 1024:>10.1f} MiB")
        return result

    block = DataConfig().block
    sizes = np.full(shards, samples)

    def epoch(number: int) -> EpochOrder:
        return EpochOrder(sizes, seed=0, epoch=number, num_lanes=lanes.count, lane_size=lanes.size, block=block)

    everyone = range(lanes.count)
    order: EpochOrder = measure("an epoch's order", lambda: epoch(0))
    measure("100 batches, from the start", lambda: [order.positions(step, everyone) for step in range(100)])
    measure("the last batch", lambda: order.positions(order.steps - 1, everyone))
    measure("another epoch's order", lambda: epoch(1))
    steps = np.linspace(0, order.steps - 1, 200).astype(int).tolist()
    times: list[float] = []
    for step in steps:
        start = perf_counter()
        order.positions(step, everyone)
        times.append(perf_counter() - start)
    said.append(f"a batch, anywhere (median of {len(times)}): {np.median(times) * 1000:.2f} ms")
    return said


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--shards", type=int)
    parser.add_argument("--samples", type=int, help="in a shard")
    parser.add_argument("--batch", type=int)
    arguments = parser.parse_args()
    if not arguments.cost:
        print_mixing(arguments.shards or 1000, arguments.samples or 1000, Lanes.cut(arguments.batch or 256, None))
        return
    shards, samples = arguments.shards or 100_000, arguments.samples or 10_000
    lanes = Lanes.cut(arguments.batch or 4096, None)
    print(f"{shards * samples:,} samples in {shards:,} shards, batches of {lanes.global_batch:,}")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        print("\n".join(pool.submit(cost, shards, samples, lanes).result()))


if __name__ == "__main__":
    main()
