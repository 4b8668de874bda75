"""Download a registered encoder, verified by its checksums: safetensors, config.json and a model card.

  python -m pipelines.pull model=models:/my-encoder@champion to=encoder
  python -m pipelines.pull model=models:/my-encoder@champion to=encoder format=timm    a folder that timm loads alone
  python -m pipelines.pull model=models:/my-encoder@champion to=encoder format=onnx    a graph for onnxruntime, say

The folder appears whole or not at all; where it holds this very version already, nothing is done. Its README.md shows
how to load it; of the first form, ssl_core.export.load_encoder(folder) does the same. The other forms give the same
features, which is checked before the folder appears.
"""

from dataclasses import dataclass
from typing import Literal

from pipelines.config import compose, typed
from pipelines.console import run_command, say
from pipelines.mlflow_connection import RegistryPlace, tracking_uri
from ssl_core.errors import UserError
from ssl_core.storage.local import local_path


@dataclass(frozen=True, kw_only=True)
class PullConfig:
    """`configs/pull.yaml`."""

    model: str | None
    to: str | None
    format: Literal["safetensors", "timm", "onnx"]
    storage: str
    tracking: RegistryPlace


def main(overrides: list[str]) -> None:
    """Download the model."""
    config = typed(PullConfig, compose("pull", overrides))
    if config.model is None or config.to is None:
        raise UserError("name a model and a folder: model=models:/<name>@champion to=<folder>")

    from pipelines.registry import pull_model

    uri = tracking_uri(config.tracking.uri, config.storage)
    folder = pull_model(config.model, local_path(config.to), uri, form=config.format)
    files = ", ".join(sorted(path.name for path in folder.iterdir()))
    say(f"{config.model} is in {folder}: {files}")
    if config.format == "safetensors":
        say(f"next: python -m pipelines.embed model={folder} data=<images or shards> output=embeddings.parquet")


if __name__ == "__main__":
    run_command("pull", __doc__, main)
