"""How fast does one core read shards, against webdataset's own pipeline on the same tars?

    python benchmarks/reading.py <packed small images> <packed photos>     CIFAR-10's and ImageNet's, say

For each data set, in a shuffled order by position: a first pass (nothing of the shards known yet: hash, walk, read), a
second pass (the next epoch of a run), and a pass that decodes to uint8 tensors. webdataset reads the same tars from
front to back without shuffling. Then from a bucket (SeaweedFS on this machine): shards into the local cache,
against boto3 downloading the same objects with the same part size and threads, and webdataset streaming them by curl.

Each contestant of a round passes once, in turn; medians of wall time, and medians of the paired ratios. Pinned to one
core but for the bucket, whose server needs one too. Files are in the page cache for all.
"""

import argparse
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch

from cluster.object_store import ObjectStore, object_store
from ssl_core.data.data_set import DataSet
from ssl_core.data.integrity import CachedShards
from ssl_core.data.manifest import Manifest, load_manifest, save_manifest
from ssl_core.data.order import EpochOrder
from ssl_core.data.reader import Reader
from ssl_core.storage import s3
from ssl_core.storage.cache import CacheConfig, ObjectCache
from ssl_core.storage.local import CACHE_VARIABLE

BATCH = 512
SMALL = 10_000  # bytes of a file whose image is small, and like all others in size
PART_BYTES, THREADS = 8 << 20, 8  # as ours
Pass = Callable[[], int]


def batches(manifest: Manifest | DataSet) -> Iterator[np.ndarray]:
    """Positions of an epoch, a batch at a time."""
    size = min(BATCH, manifest.num_samples)
    order = EpochOrder(manifest.shard_samples, seed=0, epoch=0, num_lanes=1, lane_size=size, block=8192)
    for step in range(order.steps):
        yield order.positions(step, range(1))[0]


def our_bytes(reader: Reader) -> int:
    """Every sample's bytes."""
    total = 0
    for positions in batches(reader.manifest):
        total += sum(map(len, map(reader.encoded, positions.tolist())))
    return total


def our_pixels(reader: Reader) -> int:
    """Small images are stacked, a batch a tensor; of larger ones each is a tensor that is dropped at once."""
    total = 0
    for positions in batches(reader.manifest):
        images = map(reader.image, positions.tolist())
        if reader.manifest.num_bytes < SMALL * reader.manifest.num_samples:
            total += len(torch.from_numpy(np.stack(list(images))))
        else:
            total += sum(len(torch.from_numpy(image)) > 0 for image in images)
    return total


def their_pass(urls: list[str], *, decode: bool) -> int:
    """webdataset's pipeline over the same tars."""
    from webdataset.compat import WebDataset

    data: Any = WebDataset(urls, shardshuffle=False, empty_check=False, nodesplitter=None)
    if not decode:
        return sum(len(sample["jpg"]) for sample in data)
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # it only reads
    return sum(len(torch.from_numpy(sample["jpg"])) for sample in data.decode("rgb8"))


def compare(title: str, samples: int, passes: dict[str, Pass], rounds: int, *, prepare: Callable[[], None]) -> None:
    """Time the passes in turns, the first of which is ours, and print a line each."""
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            prepare()
            start = perf_counter()
            run()
            times[name].append(perf_counter() - start)
    ours = next(iter(times.values()))
    print(title)
    for name, seconds in times.items():
        ratio = median(theirs / mine for mine, theirs in zip(ours, seconds, strict=True))
        print(f"  {name:34s} {samples / median(seconds):11,.0f} samples/s   ours × {ratio:.2f}", flush=True)


def local(folder: Path, rounds: int) -> None:
    """Local shards."""
    manifest = load_manifest(folder)
    urls = [str(Path(manifest.root) / shard.name) for shard in manifest.shards]
    stamps = Path(os.environ[CACHE_VARIABLE]) / "stamps"
    opened = Reader(manifest)
    our_bytes(opened)
    about = f"{folder.name}, {manifest.num_samples:,} samples, {manifest.num_bytes / 1e6:.0f} MB"
    theirs = {"webdataset, bytes": lambda: their_pass(urls, decode=False)}

    def nothing() -> None:
        pass

    compare(
        f"{about}: bytes, second pass",
        manifest.num_samples,
        {"ours": lambda: our_bytes(opened), **theirs},
        rounds,
        prepare=nothing,
    )
    compare(
        f"{about}: bytes, first pass with sha256",
        manifest.num_samples,
        {"ours": lambda: our_bytes(Reader(manifest)), **theirs},
        rounds,
        prepare=lambda: shutil.rmtree(stamps, ignore_errors=True),
    )
    compare(
        f"{about}: decoded to uint8 tensors",
        manifest.num_samples,
        {
            "ours": lambda: our_pixels(opened),
            'webdataset, decode("rgb8")': lambda: their_pass(urls, decode=True),
        },
        rounds,
        prepare=nothing,
    )


def bucket(folder: Path, store: ObjectStore, work: Path, rounds: int) -> None:
    """The same shards from a bucket."""
    import boto3
    from boto3.s3.transfer import TransferConfig

    manifest = load_manifest(folder)
    cache, plain = work / "cache", work / "plain"
    name = folder.name
    client: Any = boto3.client("s3", **store.client_arguments)
    client.create_bucket(Bucket=name)
    for shard in manifest.shards:
        client.upload_file(str(Path(manifest.root) / shard.name), name, f"data/{shard.name}")
    root = s3.S3Location.of(f"s3://{name}/data")
    transfer = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=THREADS)
    urls = [
        client.generate_presigned_url("get_object", Params={"Bucket": name, "Key": f"data/{shard.name}"})
        for shard in manifest.shards
    ]
    (work / "manifest").mkdir()
    save_manifest(replace(manifest, root=str(root)), work / "manifest")

    def fetched() -> int:
        shards = CachedShards(root=root, cache=ObjectCache(CacheConfig(folder=str(cache))))
        return sum(shards(shard).stat().st_size for shard in manifest.shards)

    def downloaded() -> int:
        plain.mkdir()
        for shard in manifest.shards:
            client.download_file(name, f"data/{shard.name}", str(plain / shard.name), Config=transfer)
        return len(manifest.shards)

    def clean() -> None:
        for left in (cache, plain):
            shutil.rmtree(left, ignore_errors=True)

    remote = load_manifest(work / "manifest")
    about = f"{folder.name} from a bucket, {manifest.num_bytes / 1e6:.0f} MB"
    compare(
        f"{about}: shards to local files",
        manifest.num_samples,
        {"ours, hashed, in the cache": fetched, "boto3 download_file": downloaded},
        rounds,
        prepare=clean,
    )
    compare(
        f"{about}: bytes of samples, first pass",
        manifest.num_samples,
        {
            "ours": lambda: our_bytes(Reader(remote, cache=CacheConfig(folder=str(cache)))),
            "webdataset, curl": lambda: their_pass(urls, decode=False),
        },
        rounds,
        prepare=clean,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ[CACHE_VARIABLE] = temporary
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cores)})
        for folder in arguments.folders:
            local(folder, arguments.rounds)
        os.sched_setaffinity(0, cores)
        with object_store(Path(temporary) / "store") as store:
            os.environ.update(store.environment)
            for folder in arguments.folders:
                work = Path(temporary) / folder.name
                work.mkdir()
                bucket(folder, store, work, arguments.rounds)


if __name__ == "__main__":
    main()
