"""How fast does one core make SimCLR's two views of an image, from JPEG bytes to standardised float tensors?

    python benchmarks/views.py                     synthetic images: 32 × 32 → 32 px, and 500 × 375 → 224 px
    python benchmarks/views.py <folder of shards>  the images of its tars, to 32 px if they are small, else 224 px

Prints images per second of the bare decode (simplejpeg), of the pipeline here, of the part that a loader does for a GPU
(decode, two crops, flip, uint8 out), and of the same distribution by torchvision (Pillow), lightly and albumentations
(`pip install -c constraints.txt -e '.[benchmark]'`; those that are not installed are left out); how much faster ours
is, and the mean, standard deviation and mean step between neighbours of what each puts out, which must agree. Pinned to
one core; time is the thread's own processor time, so waiting for others does not count. Every chunk of images passes
all in turn and gives one ratio each; medians over chunks are printed, so what else the machine does to caches and
clock meets all alike. Freed memory is kept, as in a worker.
"""

import argparse
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image as Pillow

from pipelines.worker import keep_freed_memory
from ssl_core import rng
from ssl_core.nn.standardise import Standardise
from ssl_core.torchvision_operators import declare_missing
from ssl_core.views import CropConfig, CropRecipe
from ssl_core.views.image import blur_kernel_size

OURS = "decode and two views"
LANE_SIZE = 32
"""Samples whose random numbers the loader draws at once."""
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


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Pipeline = Callable[[int, bytes], Any]


def bare_decode(index: int, photo: bytes) -> Any:
    """What nobody can leave out."""
    return simplejpeg.decode_jpeg(photo)


def our_pipeline(config: CropConfig, *, standardise: bool = True) -> Pipeline:
    """Decode and two views as the loader makes them, then what the step does: [2, size, size, 3]."""
    recipe = CropRecipe.of(config)
    views = np.arange(recipe.num_views)

    @lru_cache(maxsize=1)
    def drawn(lane: int) -> Any:
        samples = np.arange(lane * LANE_SIZE, (lane + 1) * LANE_SIZE)
        return recipe.draw(rng.key(0, "views", 0, samples[:, None], views))

    to_floats = Standardise(MEAN, STD, dtype=torch.float32, device=torch.device("cpu"))

    def two_views(index: int, photo: bytes) -> Any:
        lane, sample = divmod(index, LANE_SIZE)
        (made,) = recipe(simplejpeg.decode_jpeg(photo), drawn(lane)[sample])
        return to_floats(torch.from_numpy(made)) if standardise else made

    return two_views


def torchvision_pipeline(config: CropConfig) -> Pipeline:
    """The same distribution with Pillow and torchvision's transforms: two of [3, size, size]."""
    declare_missing()
    from torchvision import transforms

    view = config.layout()["views"][0]
    jitter = transforms.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    blur: list[Any] = []
    if view.blur:
        kernel = blur_kernel_size(view.size)
        blur = [transforms.RandomApply([transforms.GaussianBlur(kernel, view.blur_sigma)], view.blur)]
    make = transforms.Compose(
        [
            transforms.RandomResizedCrop(view.size, view.scale, view.ratio),
            transforms.RandomHorizontalFlip(view.flip),
            transforms.RandomApply([jitter], view.jitter),
            transforms.RandomGrayscale(view.grey),
            *blur,
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def two_views(index: int, photo: bytes) -> Any:
        picture = Pillow.open(io.BytesIO(photo)).convert("RGB")
        return make(picture), make(picture)

    return two_views


def lightly_pipeline(config: CropConfig) -> Pipeline:
    """lightly's `SimCLRTransform` with the same settings."""
    declare_missing()
    transforms: Any = import_module("lightly.transforms")
    view = config.layout()["views"][0]
    make = transforms.SimCLRTransform(
        input_size=view.size,
        cj_prob=view.jitter,
        cj_strength=1.0,
        cj_bright=view.brightness,
        cj_contrast=view.contrast,
        cj_sat=view.saturation,
        cj_hue=view.hue,
        min_scale=view.scale[0],
        random_gray_scale=view.grey,
        gaussian_blur=view.blur,
        sigmas=view.blur_sigma,
        hf_prob=view.flip,
    )
    return lambda index, photo: make(Pillow.open(io.BytesIO(photo)).convert("RGB"))


def albumentations_pipeline(config: CropConfig, decode: Callable[[bytes], Any]) -> Pipeline:
    """The same distribution with albumentations."""
    A: Any = import_module("albumentations")
    ToTensorV2: Any = import_module("albumentations.pytorch").ToTensorV2
    view = config.layout()["views"][0]
    kernel = blur_kernel_size(view.size)
    blur = [A.GaussianBlur((kernel, kernel), view.blur_sigma, p=view.blur)] if view.blur else []
    low, high = (tuple(1 + sign * v for v in (view.brightness, view.contrast, view.saturation)) for sign in (-1, 1))
    make: Any = A.Compose(
        [
            A.RandomResizedCrop((view.size, view.size), view.scale, view.ratio),
            A.HorizontalFlip(p=view.flip),
            A.ColorJitter(*zip(low, high, strict=True), hue=(-view.hue, view.hue), p=view.jitter),
            A.ToGray(p=view.grey),
            *blur,
            A.Normalize(MEAN, STD),
            ToTensorV2(),
        ]
    )

    def two_views(index: int, photo: bytes) -> Any:
        pixels = decode(photo)
        return make(image=pixels)["image"], make(image=pixels)["image"]

    return two_views


def decode_with_opencv(photo: bytes) -> Any:
    """As albumentations' documentation reads images."""
    pixels = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def pipelines_for(config: CropConfig) -> dict[str, Pipeline]:
    """All that can be imported here."""
    crops = replace(config, jitter=0.0, grey=0.0, blur=0.0)
    makers: dict[str, Callable[[], Pipeline]] = {
        OURS: lambda: our_pipeline(config),
        "bare decode": lambda: bare_decode,
        "our crops, for a GPU": lambda: our_pipeline(crops, standardise=False),
        "torchvision, Pillow": lambda: torchvision_pipeline(config),
        "lightly": lambda: lightly_pipeline(config),
        "albumentations, OpenCV": lambda: albumentations_pipeline(config, decode_with_opencv),
        "albumentations, simplejpeg": lambda: albumentations_pipeline(config, simplejpeg.decode_jpeg),
    }
    found: dict[str, Pipeline] = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            print(f"without {name}: {error}")
    return found


def statistics_of(pipeline: Pipeline, photos: Sequence[bytes]) -> str:
    """Mean, deviation and mean step between neighbours in a row, of the standardised output."""
    values: list[tuple[float, float, float]] = []
    for index, photo in enumerate(photos):
        for view in pipeline(index, photo):
            pixels: Any = torch.as_tensor(view)
            if pixels.dtype != torch.float32 or pixels.ndim != 3:
                return ""
            rows = pixels if pixels.shape[0] == 3 else pixels.permute(2, 0, 1)
            values.append((float(rows.mean()), float(rows.std()), float(rows.diff(dim=2).abs().mean())))
    mean, deviation, step = (float(np.mean(column)) for column in zip(*values, strict=True))
    return f"mean {mean:+.3f}, deviation {deviation:.3f}, step {step:.4f}"


def seconds(run: Pipeline, photos: Sequence[bytes], indices: Iterable[int]) -> float:
    start = thread_time()
    for index in indices:
        run(index, photos[index % len(photos)])
    return thread_time() - start


def compare(photos: Sequence[bytes], size: int, rounds: int) -> None:
    """Time them on the same chunks and print a line each."""
    contestants = pipelines_for(CropConfig(image_size=size))
    for run in contestants.values():
        seconds(run, photos, range(8))  # imports, compiled code, memory
    per_image = {name: seconds(run, photos, range(8)) / 8 for name, run in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for index in range(rounds):
        for name, run in contestants.items():
            count = max(1, round(CHUNK_SECONDS / per_image[name]))
            times[name].append(seconds(run, photos, range(index * count, (index + 1) * count)) / count)
    print(f"{size} px, {len(photos)} images of {sum(map(len, photos)) / len(photos) / 1000:.1f} kB, {rounds} rounds")
    for name, values in times.items():
        ratio = median(theirs / ours for ours, theirs in zip(times[OURS], values, strict=True))
        statistics = statistics_of(contestants[name], photos) if name != "bare decode" else ""
        print(f"  {name:27s} {1 / median(values):7.1f} images/s   ours × {ratio:6.3f}   {statistics}", flush=True)
    crops = [bare / part for bare, part in zip(times["bare decode"], times["our crops, for a GPU"], strict=True)]
    print(f"  our crops, for a GPU / bare decode {median(crops):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="folder of tars with .jpg members")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=240)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    keep_freed_memory()
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
