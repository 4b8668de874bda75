"""Pictures of a finished run, for people: its views, what the method makes of them, its curves, its features.

Written to <run>/pictures/ and copied to the tracker. Nothing depends on them.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pipelines.kept_steps import method_at, newest_checkpoint
from pipelines.plan import Plan, make_plan, probe_sets
from pipelines.ray_context import call_on_ray
from pipelines.run_folder import EXPORT
from ssl_core.data.loader import LaneLoader
from ssl_core.data.reader import Reader
from ssl_core.export import load_encoder
from ssl_core.lanes import Lanes
from ssl_core.methods import METHODS
from ssl_core.probe.features import ImageInput, centre_square, encode
from ssl_core.probe.knn import nearest
from ssl_core.probe.labelled import choose_samples
from ssl_core.storage.local import atomic_path
from ssl_core.types import LaneBatch, ViewBatch

PICTURES = "pictures"
_SHOWN = 10  # samples in a picture
_NEIGHBOURS = 8
_BANK, _QUERIES = 5000, 1000  # images that features are made of
_GAP = 2  # pixels between images of a grid

Pixels = NDArray[np.uint8]


def draw_on_ray(plan: Plan, folder: Path) -> list[Path]:
    """Draw on the Ray that is running, where the data and the devices are: the files, in order."""
    names: list[str] = call_on_ray(_draw, dict(plan.values), str(folder), max_retries=1)
    return [folder / PICTURES / name for name in names]


def _draw(values: dict[str, Any], folder: str) -> list[str]:
    torch.set_num_threads(os.cpu_count() or 1)
    return [path.name for path in draw(make_plan(values), Path(folder))]


def draw(plan: Plan, folder: Path) -> list[Path]:
    """Draw everything that this run has the data for.

    Args:
        plan: the run's.
        folder: the run's, with its metrics, checkpoint and exported encoder.

    Returns:
        PNG files in <folder>/pictures: views and curves always; what the method shows of itself; with labelled data a
        t-SNE map (van der Maaten and Hinton, 2008) of validation features and nearest neighbours.
    """
    batch = _samples(plan)
    figures = {
        f"views_{name}" if name != "views" else "views": _views(name, batch.groups[name]) for name in batch.groups
    }
    figures |= _method_pictures(plan, folder, batch)
    figures["curves"] = _curves(folder)
    if (seen := _seen(plan, folder)) is not None:
        figures["neighbours"] = _neighbours(seen)
        if len(seen.queries_QD) >= 10:
            figures["map"] = _map(seen, seed=plan.config.seed)
    paths: list[Path] = []
    for name, figure in figures.items():
        path = folder / PICTURES / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as scratch:
            figure.savefig(scratch, format="png", dpi=120, bbox_inches="tight")
        paths.append(path)
    return paths


def _samples(plan: Plan) -> LaneBatch:
    """The first samples of the first lane of the first step, as the run saw them."""
    lanes = Lanes.cut(plan.lanes.global_batch, plan.lanes.count, rank=0, world=plan.lanes.count)
    reader = Reader(plan.train_data, channels=plan.config.model.in_chans, cache=plan.config.data.shard_cache)
    recipe = plan.build_method(plan.random_encoder()).recipe
    batch = LaneLoader(reader, recipe, replace(plan.schedule, lanes=lanes)).batch(0)
    groups = {name: views[:1, :, :_SHOWN] for name, views in batch.groups.items()}
    return replace(batch, positions=batch.positions[:1, :_SHOWN], draws=batch.draws[:1, :_SHOWN], groups=groups)


def _views(name: str, views_LVbHWK: Pixels) -> Figure:
    count = views_LVbHWK.shape[1]
    return _grid(views_LVbHWK[0], f"{name}: a column is a sample, a row one of its {count} views")


def _method_pictures(plan: Plan, folder: Path, batch: LaneBatch) -> dict[str, Figure]:
    """What the method shows of itself, with the weights of the newest checkpoint."""
    name = plan.config.method["name"]
    checkpoint = newest_checkpoint(plan, folder)
    if checkpoint is None:
        return {}
    method = method_at(plan, checkpoint)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) * 255 for values in (plan.mean, plan.std))
    images: dict[str, Tensor] = {}
    for group, pixels in batch.groups.items():
        rows = torch.from_numpy(pixels.reshape(-1, *pixels.shape[3:])).permute(0, 3, 1, 2)
        images[group] = (rows - mean) / std
    draws = torch.from_numpy(batch.draws.ravel())
    seen = ViewBatch(images=images, draws=draws, num_lanes=1, step=0, epoch=batch.epoch, seed=plan.config.seed)
    figures: dict[str, Figure] = {}
    for number, (title, shown) in enumerate(METHODS[name].pictures(method, seen).items()):
        pixels = (shown.transpose(0, 1) * std[None] + mean[None]).clamp(0, 255).byte()
        figures[f"{name}_{number}" if number else name] = _grid(
            pixels.permute(0, 1, 3, 4, 2).numpy(), f"{name}: {title}"
        )
    return figures


def _curves(folder: Path) -> Figure:
    """Loss, rate, k-NN and health against the epoch."""
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    panels = {
        "loss": ("loss",),
        "learning rate": ("learning_rate",),
        "k-NN accuracy": ("knn_online",),
        "effective rank": ("effective_rank",),
        "spread of features": ("feature_std",),
        "alignment, uniformity": ("alignment", "uniformity"),
    }
    figure = Figure(figsize=(12, 6), layout="constrained")
    for place, (title, names) in zip(figure.subplots(2, 3).flat, panels.items(), strict=True):
        place.set_title(title)
        place.set_xlabel("epoch")
        for name in names:
            points = [(line["epoch"], line[name]) for line in lines if name in line]
            if points:
                place.plot(
                    *zip(*points, strict=True), marker="o" if len(points) < 30 else None, markersize=3, label=name
                )
        if len(names) > 1 and place.lines:
            place.legend()
        if not place.lines:
            place.text(0.5, 0.5, "not measured", ha="center", va="center", transform=place.transAxes)
    return figure


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """Labelled images as the trained encoder sees them."""

    classes: tuple[str, ...]
    bank_ND: Tensor
    bank_y: NDArray[np.int64]
    bank_pixels: "_Images"
    queries_QD: Tensor
    queries_y: NDArray[np.int64]
    query_pixels: "_Images"


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Some images of a data set, at one size."""

    reader: Any
    positions: NDArray[np.int64]
    size: int

    def __getitem__(self, row: int) -> Pixels:
        return centre_square(self.reader.image(int(self.positions[row])), self.size)


def _seen(plan: Plan, folder: Path) -> _Seen | None:
    labelled = probe_sets(plan)
    if labelled is None:
        return None
    loaded = load_encoder(folder / EXPORT)
    model = loaded.config.model
    train, val = labelled
    chosen = choose_samples(train, val, max_train=_BANK, max_val=_QUERIES, seed=plan.config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = loaded.encoder.to(device)
    image_input = ImageInput(size=model.image_size, mean=loaded.config.mean, std=loaded.config.std)

    def features(images: Any, positions: NDArray[np.int64]) -> Tensor:
        return encode(encoder, images.image, positions.tolist(), image_input=image_input, device=device).cpu()

    return _Seen(
        classes=train.classes,
        bank_ND=features(train.images, chosen.train_positions),
        bank_y=chosen.train_y,
        bank_pixels=_Images(reader=train.images, positions=chosen.train_positions, size=model.image_size),
        queries_QD=features(val.images, chosen.val_positions),
        queries_y=chosen.val_y,
        query_pixels=_Images(reader=val.images, positions=chosen.val_positions, size=model.image_size),
    )


def _neighbours(seen: _Seen) -> Figure:
    """Validation images and the training images nearest to them; a green frame where the class is the same."""
    rows = np.linspace(0, len(seen.queries_QD) - 1, min(_SHOWN, len(seen.queries_QD))).astype(int)
    _, index = nearest(seen.bank_ND, seen.queries_QD[torch.from_numpy(rows)], _NEIGHBOURS)
    strips: list[list[Pixels]] = []
    for row, found in zip(rows.tolist(), index.tolist(), strict=True):
        same = [int(seen.bank_y[one]) == int(seen.queries_y[row]) for one in found]
        neighbours = [_framed(seen.bank_pixels[one], right) for one, right in zip(found, same, strict=True)]
        strips.append([_framed(seen.query_pixels[row], None), *neighbours])
    by_rank = np.stack([np.stack(strip) for strip in strips], 1)
    return _grid(
        by_rank, "first row: validation images; below: their nearest training images, green where the class fits"
    )


def _map(seen: _Seen, *, seed: int) -> Figure:
    """A t-SNE map of the validation features, coloured by class."""
    from sklearn.manifold import TSNE

    x_QD = torch.nn.functional.normalize(seen.queries_QD, dim=1).numpy()
    perplexity = min(30.0, (len(x_QD) - 1) / 3)
    # PCA's own start is exact at this size; the method's seed only matters to ties
    place_Q2 = TSNE(perplexity=perplexity, init="pca", random_state=seed & 0x7FFFFFFF).fit_transform(x_QD)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    present = np.unique(seen.queries_y)
    if len(present) <= 20:
        colours = colormaps["tab10" if len(present) <= 10 else "tab20"]
        for colour, label in enumerate(present.tolist()):
            chosen = place_Q2[seen.queries_y == label]
            name = seen.classes[label] if label < len(seen.classes) else str(label)
            axes.scatter(*chosen.T, s=9, color=colours(colour), label=name)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        axes.scatter(*place_Q2.T, s=9, c=seen.queries_y, cmap="nipy_spectral")
    axes.set_title(f"t-SNE (perplexity {perplexity:.0f}) of the features of {len(x_QD):,} validation images")
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def _framed(image: Pixels, right: bool | None) -> Pixels:
    """An image in colour with a frame: green, red, or black for no verdict."""
    colour = {True: (40, 160, 60), False: (200, 50, 50), None: (0, 0, 0)}[right]
    width = max(1, image.shape[0] // 24)
    framed = np.full((image.shape[0] + 2 * width, image.shape[1] + 2 * width, 3), colour, np.uint8)
    framed[width:-width, width:-width] = _in_colour(image)
    return framed


def _in_colour(pixels: Pixels) -> Pixels:
    """[…, K] → […, 3]: grey thrice, of other channels the first three."""
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, -1)


def _grid(rows: Sequence[Pixels] | Pixels, title: str) -> Figure:
    """uint8 [rows, columns, H, W, K] as one picture, every pixel sharp."""
    images = _in_colour(np.asarray(rows))
    padded = np.pad(images, ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in padded], 0)
    height, width = sheet.shape[:2]
    figure = Figure(figsize=(12, 12 * height / width + 0.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title)
    return figure
