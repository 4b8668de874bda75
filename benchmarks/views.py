"""How fast does one core make SimCLR's two views of an image, decoding included?

    python benchmarks/views.py                     synthetic images: 32 × 32 → 32 px, and 500 × 375 → 224 px
    python benchmarks/views.py <folder of shards>  the images of its tars, to 32 px if they are small, else 224 px

Prints images per second of the bare decode (simplejpeg), of decode and views here, and of torchvision's PIL pipeline
with the same distribution, and the ratios. Pinned to one core; time is the thread's own processor time, so waiting for
others does not count. Every chunk of images passes all three in turn and gives one ratio; medians over chunks are
printed, so what else the machine does to caches and clock meets all three alike.
"""

import argparse
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image as Pillow

from ssl_core import rng
from ssl_core.torchvision_operators import declare_missing
from ssl_core.views import CropConfig, CropRecipe

CHUNK_SECONDS = 0.25
"""What one contestant should spend on a chunk."""


def photos_of(folder: Path, limit: int) -> list[bytes]:
    """The first JPEG files in a folder's tars."""
    found: list[bytes] = []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as members:
            for member in members:
                content = members.extractfile(member) if member.name.endswith((".jpg", ".jpeg")) else None
                if content is not None:
                    found.append(content.read())
                if len(found) == limit:
                    return found
    return found


def synthetic_photos(height: int, width: int, count: int) -> list[bytes]:
    """Noise of all scales, falling off as in photos (amplitude in proportion to scale), as JPEG of quality 90."""
    found: list[bytes] = []
    for index in range(count):
        picture = np.zeros((height, width, 3))
        scale = 1
        while scale <= max(height, width):
            rows, columns = -(-height // scale), -(-width // scale)
            count_numbers = rows * columns * 3
            noise = rng.uniform(rng.key(0, "benchmark.photo", index, scale), count_numbers).reshape(rows, columns, 3)
            picture += scale**0.6 * cv2.resize(noise - 0.5, (width, height), interpolation=cv2.INTER_CUBIC)
            scale *= 2
        picture = (picture - picture.min()) / np.ptp(picture) * 255
        found.append(simplejpeg.encode_jpeg(np.ascontiguousarray(picture.astype(np.uint8)), quality=90))
    return found


def our_pipeline(config: CropConfig) -> Callable[[int, bytes], Any]:
    """Decode and two views, as the loader makes them."""
    recipe = CropRecipe.of(config)
    views = np.arange(recipe.num_views)
    return lambda index, photo: recipe(simplejpeg.decode_jpeg(photo), rng.key(0, "views", 0, index, views))


def torchvision_pipeline(config: CropConfig) -> Callable[[int, bytes], Any]:
    """The same distribution with Pillow and torchvision's transforms."""
    declare_missing()
    from torchvision import transforms

    view = config.layout()["views"][0]
    jitter = transforms.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    blur: list[Any] = []
    if view.blur:
        blur = [transforms.RandomApply([transforms.GaussianBlur(23, view.blur_sigma)], view.blur)]
    make = transforms.Compose(
        [
            transforms.RandomResizedCrop(view.size, view.scale, view.ratio),
            transforms.RandomHorizontalFlip(view.flip),
            transforms.RandomApply([jitter], view.jitter),
            transforms.RandomGrayscale(view.grey),
            *blur,
        ]
    )

    def two_views(index: int, photo: bytes) -> Any:
        picture = Pillow.open(io.BytesIO(photo)).convert("RGB")
        return make(picture), make(picture)

    return two_views


def seconds(run: Callable[[int, bytes], Any], photos: Sequence[bytes], indices: Iterable[int]) -> float:
    start = thread_time()
    for index in indices:
        run(index, photos[index % len(photos)])
    return thread_time() - start


def compare(photos: Sequence[bytes], size: int, rounds: int) -> None:
    """Time the three on the same chunks and print a line each."""
    config = CropConfig(image_size=size)
    ours, theirs = our_pipeline(config), torchvision_pipeline(config)
    contestants: dict[str, Callable[[int, bytes], Any]] = {
        "bare decode": lambda index, photo: simplejpeg.decode_jpeg(photo),
        "decode and two views": ours,
        "torchvision, PIL": theirs,
    }
    per_image = {name: seconds(run, photos, range(8)) / 8 for name, run in contestants.items()}  # also warms up
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for index in range(rounds):
        for name, run in contestants.items():
            count = max(1, round(CHUNK_SECONDS / per_image[name]))
            times[name].append(seconds(run, photos, range(index * count, (index + 1) * count)) / count)
    print(f"{size} px, {len(photos)} images of {sum(map(len, photos)) / len(photos) / 1000:.1f} kB, {rounds} rounds")
    for name, values in times.items():
        ratio = median(ours_s / s for ours_s, s in zip(times["decode and two views"], values, strict=True))
        typical = median(values)
        print(f"  {name:22s} {1 / typical:9.1f} images/s {typical * 1e6:9.0f} µs   ours takes ×{ratio:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="folder of tars with .jpg members")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=240)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if arguments.folder is None:
        for size, height, width in ((32, 32, 32), (224, 375, 500)):
            compare(synthetic_photos(height, width, min(arguments.images, 60)), size, arguments.rounds)
        return
    photos = photos_of(arguments.folder, arguments.images)
    if not photos:
        raise SystemExit(f"{arguments.folder}: no tar with .jpg members; name a folder of shards")
    height, width = simplejpeg.decode_jpeg(photos[0]).shape[:2]
    compare(photos, 32 if min(height, width) <= 64 else 224, arguments.rounds)


if __name__ == "__main__":
    main()
