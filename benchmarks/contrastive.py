"""What does NT-Xent cost, forward and backward, and how much memory at its peak?

    python benchmarks/contrastive.py [--pairs 256 512 … 32768] [--dim 128] [--rounds 5] [--threads 2]

Ours, the dense form (one matrix of all rows by all rows and a cross entropy) and, where the extra `benchmark` is
installed, lightly's `NTXentLoss`. Times are medians of rounds in which the three take turns; peak memory is what the
process's resident size rises by, each in a process of its own. Above --dense-up-to pairs ours runs alone. Prints
ratios, memory in units of (2N)² floats, and the slope of log memory against log N from N = 2,048 on.
"""

import argparse
import multiprocessing
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from math import log
from pathlib import Path
from statistics import linear_regression, median
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.losses import nt_xent
from ssl_core.torchvision_operators import declare_missing

TEMPERATURE = 0.1
Loss = Callable[[Tensor, Tensor], Tensor]


def dense(a: Tensor, b: Tensor) -> Tensor:
    """One matrix of similarities."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    similarity = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    index = torch.arange(len(a))
    return F.cross_entropy(similarity, torch.cat([index + len(a), index]))


def losses() -> dict[str, Loss]:
    """What is compared."""
    found: dict[str, Loss] = {"ours": lambda a, b: nt_xent(a, b, temperature=TEMPERATURE), "dense": dense}
    if find_spec("lightly"):
        declare_missing()
        found["lightly"] = import_module("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
    return found


def rows(pairs: int, dim: int) -> tuple[Tensor, Tensor]:
    """Embeddings of two views that resemble each other."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(pairs, dim, generator=generator)
    b = a + torch.randn(pairs, dim, generator=generator)
    return a.requires_grad_(), b.requires_grad_()


def seconds(names: Sequence[str], pairs: int, dim: int, rounds: int, threads: int) -> dict[str, float]:
    """Median seconds of forward and backward, in turns."""
    torch.set_num_threads(threads)
    times: dict[str, list[float]] = {name: [] for name in names}
    found = losses()
    a, b = rows(pairs, dim)
    for _ in range(rounds + 1):
        for name in names:
            a.grad = b.grad = None
            start = perf_counter()
            found[name](a, b).backward()
            times[name].append(perf_counter() - start)
    return {name: median(values[1:]) for name, values in times.items()}


def peak_mib(name: str, pairs: int, dim: int, threads: int) -> float:
    """How far the resident size of this (fresh) process rises above where it was."""
    torch.set_num_threads(threads)
    loss = losses()[name]
    loss(*rows(64, dim)).backward()  # load the kernels
    a, b = rows(pairs, dim)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    loss(a, b).backward()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[2**i for i in range(8, 16)])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dense-up-to", type=int, default=8192)
    arguments = parser.parse_args()
    names = list(losses())
    memory: dict[int, float] = {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for pairs in arguments.pairs:
            compared = names if pairs <= arguments.dense_up_to else ["ours"]
            shape = (pairs, arguments.dim)
            time = pool.submit(seconds, compared, *shape, arguments.rounds, arguments.threads).result()
            peak = {name: pool.submit(peak_mib, name, *shape, arguments.threads).result() for name in compared}
            memory[pairs] = peak["ours"]
            floats_mib = (2 * pairs) ** 2 * 4 / 2**20
            print(f"{pairs:6,} pairs", end="")
            for name in compared:
                print(f" · {name} {time[name]:.3f} s, {peak[name]:,.0f} MiB = {peak[name] / floats_mib:.2f}", end="")
            if len(compared) > 1:
                print(f" · ours / faster other {time['ours'] / min(time[n] for n in compared[1:]):.2f}", end="")
            print(flush=True)
    large = {pairs: peak for pairs, peak in memory.items() if pairs >= 2048}
    if len(large) > 1:
        slope = linear_regression([log(n) for n in large], [log(m) for m in large.values()]).slope
        print(f"memory grows as N^{slope:.2f} from N = {min(large):,} on")


if __name__ == "__main__":
    main()
