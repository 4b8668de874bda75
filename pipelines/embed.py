"""Embed images with an encoder: one row an image, in a parquet file.

  python -m pipelines.embed model=encoder data=shards/val output=embeddings.parquet
  python -m pipelines.embed model=models:/my-encoder@champion data=photos output=embeddings.parquet

Columns: key (text), label (a number or null), embedding (float32, fixed size). The schema's metadata names the model
and the data by their digests, and the classes. The file appears whole or not at all; the same command writes the same
bytes.
"""

import json
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import compose, typed
from pipelines.console import LiveLine, run_command, say
from pipelines.finished_run import EXPORT
from pipelines.mlflow_connection import RegistryPlace, tracking_uri
from ssl_core.errors import UserError
from ssl_core.storage.local import atomic_path, local_path
from ssl_core.storage.s3 import is_s3

if TYPE_CHECKING:
    from pipelines.embed_images import Images
    from ssl_core.export import LoadedEncoder

_ROWS_A_GROUP = 8192


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """`configs/embed.yaml`."""

    model: str | None
    data: str | None
    output: str | None
    batch: int
    threads: int | None
    storage: str
    tracking: RegistryPlace

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.model is None or self.data is None or self.output is None:
            raise UserError("name a model, images and a file: model=<folder> data=<folder> output=<file>.parquet")
        if self.batch < 1 or (self.threads is not None and self.threads < 1):
            raise UserError(f"batch={self.batch}, threads={self.threads}: at least 1 each")


def main(overrides: list[str]) -> None:
    """Embed all images."""
    config = typed(EmbedConfig, compose("embed", overrides))
    model, output = config.model or "", local_path(config.output or "")
    if output.is_dir():
        raise UserError(f"output={output} is a folder: name a file, such as {output / 'embeddings.parquet'}")
    folder = None if model.startswith("models:/") else _model_folder(model)
    elsewhere = config.data == "digits" or is_s3(config.data or "")
    data = None if elsewhere else local_path(config.data or "")
    if data is not None and not data.exists():
        raise UserError(f"data={config.data}: no such folder or file")
    with _downloaded(config) if folder is None else _as_is(folder) as exported:
        _embed(config, exported, output)


def _model_folder(model: str) -> Path:
    """An exported folder, or that of a run."""
    folder = local_path(model)
    if not folder.is_dir():
        raise UserError(f"model={model}: no such folder (models:/<name>@champion names a registered model)")
    return folder / EXPORT if (folder / EXPORT).is_dir() else folder


@contextmanager
def _downloaded(config: EmbedConfig) -> Generator[Path]:
    from pipelines.registry import pull_model

    with tempfile.TemporaryDirectory() as folder:
        uri = tracking_uri(config.tracking.uri, config.storage)
        yield pull_model(config.model or "", Path(folder) / "model", uri)


@contextmanager
def _as_is(folder: Path) -> Generator[Path]:
    yield folder


def _embed(config: EmbedConfig, exported: Path, output: Path) -> None:
    import torch

    from pipelines.embed_images import open_images
    from ssl_core.export import export_digest, load_encoder

    threads = config.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    encoder = load_encoder(exported)
    model = encoder.config.model
    images = open_images(config.data or "", channels=model.in_chans, size=model.image_size)
    about = {
        "model": config.model or "",
        "model_digest": export_digest(exported),
        "data_digest": images.digest(),
        "classes": json.dumps(images.classes),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(output) as temporary:
        left_out = _write(temporary, images, encoder, about, batch=config.batch, threads=threads)
    say(f"{len(images) - len(left_out):,} embeddings of {encoder.config.num_features} features in {output}")
    if left_out:
        say(f"{len(left_out):,} images do not decode and were left out, such as {', '.join(left_out[:3])}")


def _write(
    path: Path, images: "Images", encoder: "LoadedEncoder", about: dict[str, str], *, batch: int, threads: int
) -> list[str]:
    """Write the file as the batches come; the keys of images that do not decode."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipelines.embed_images import decoded_batches
    from ssl_core.probe.features import embed

    features = pa.list_(pa.float32(), encoder.config.num_features)
    schema = pa.schema([("key", pa.string()), ("label", pa.int64()), ("embedding", features)], metadata=about)
    line, left_out, ready, done = LiveLine(), list[str](), list[Any](), 0
    with pq.ParquetWriter(path, schema) as writer:
        for items in decoded_batches(images, batch=batch, threads=threads):
            good = [(item.key, item.label, item.image) for item in items if item.image is not None]
            left_out += [item.key for item in items if item.image is None]
            if good:
                keys, labels, pixels = zip(*good, strict=True)
                vectors = pa.array(embed(encoder, pixels, batch_size=batch).ravel())
                columns = [
                    pa.array(keys),
                    pa.array(labels, pa.int64()),
                    pa.FixedSizeListArray.from_arrays(vectors, type=features),
                ]
                ready.append(pa.Table.from_arrays(columns, schema=schema))
            done += len(items)
            if sum(len(table) for table in ready) >= _ROWS_A_GROUP or done == len(images):
                writer.write_table(pa.concat_tables(ready) if ready else schema.empty_table())
                ready.clear()
            line.show(f"embedding: {done:,} of {len(images):,}", force=done == len(images))
    line.close()
    return left_out


if __name__ == "__main__":
    run_command("embed", __doc__, main)
