"""How fast does the whole loader make SimCLR's two views: threads of the trainer, or processes of their own?

    python benchmarks/loader.py <folder of shards> [--size 224] [--batch 64]

Images per second from shards to lane batches in the trainer's hands, by the wall clock, for each way of making them;
then again while the trainer computes in Python (its lock held), as a step's host side does. Each way of a round passes
once, in turn; medians over rounds, and medians of the paired ratios to one thread. Also the
seconds until the first batch, in which processes start.
"""

import argparse
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

import cv2

from pipelines.worker import keep_freed_memory
from ssl_core.data.loader import LaneLoader, Schedule
from ssl_core.data.manifest import Manifest, load_manifest
from ssl_core.data.reader import Reader
from ssl_core.lanes import Lanes
from ssl_core.views import recipe

WAYS = {
    "1 thread": (1, 0),
    "2 threads": (2, 0),
    "1 process": (1, 1),
    "2 processes": (1, 2),
}


def loader(manifest: Manifest, size: int, batch: int, way: str) -> LaneLoader:
    """One that makes batches in one of the ways."""
    threads, processes = WAYS[way]
    lanes = Lanes.cut(batch, 4)
    schedule = Schedule(shard_samples=manifest.shard_samples, seed=0, block=8192, lanes=lanes)
    return LaneLoader(
        Reader(manifest), recipe("simclr", image_size=size), schedule, threads=threads, processes=processes
    )


def images_per_second(made: LaneLoader, batch: int, steps: int) -> tuple[float, float]:
    """After the first batch; and the seconds until that one."""
    start = perf_counter()
    stream = made.stream(0, steps + 1)
    next(stream)
    first = perf_counter()
    checksum = sum(int(one.groups["views"][0, 0, 0, 0, 0, 0]) for one in stream)
    assert checksum >= 0
    return steps * batch / (perf_counter() - first), first - start


@contextmanager
def busy_python() -> Generator[None]:
    """Within: another thread of this process computes in Python half of the time it is given."""
    done = threading.Event()

    def compute() -> None:
        while not done.is_set():
            until = perf_counter() + 0.005
            while perf_counter() < until:
                sum(range(100))
            done.wait(0.005)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def compare(manifest: Manifest, size: int, batch: int, steps: int, rounds: int) -> None:
    """Print a line for each way."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    starts: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            rate, start = images_per_second(loader(manifest, size, batch, way), batch, steps)
            rates[way].append(rate)
            starts[way].append(start)
    for way, found in rates.items():
        ratio = median(one / base for one, base in zip(found, rates["1 thread"], strict=True))
        print(
            f"  {way:12s} {median(found):7.1f} images/s   {ratio:5.2f} × 1 thread   "
            f"first batch after {median(starts[way]):.2f} s",
            flush=True,
        )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of shards with a manifest")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(words)
    cv2.setNumThreads(1)
    keep_freed_memory()  # as a worker does
    manifest = load_manifest(arguments.folder)
    sizes = (arguments.size, arguments.batch, arguments.steps, arguments.rounds)
    print(f"{manifest.num_samples} images to {arguments.size} px, two views; batches of {arguments.batch} in 4 lanes")
    compare(manifest, *sizes)
    print("while the trainer computes in Python half of the time")
    with busy_python():
        compare(manifest, *sizes)


if __name__ == "__main__":
    main()
