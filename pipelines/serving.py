"""The registered flavour: how an exported encoder becomes an MLflow model, and how MLflow loads it again.

The model is `mlflow.pyfunc` with this module as its loader: the artefact holds the exported folder and nothing to
execute, no pickle and no code. It takes a batch of images named `image`, in any of the forms that people have them:

* base64 text of JPEG, PNG, … files, which is what a served model gets:
  `{"dataframe_split": {"columns": ["image"], "data": [["/9j/4AAQ…"]]}}` or `{"inputs": {"image": ["/9j/4AAQ…"]}}`
* the files' bytes, in a data frame's column `image`
* one array for all: [N, H, W, C] or [N, C, H, W], uint8 or, from 0 to 1, floating point

and gives float32 [N, D]. Sizes are free: images are resized and cropped as the probe does it.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

    from ssl_core.export import LoadedEncoder

COLUMN = "image"
DISTRIBUTION = "ssl-pipelines"
_REQUIREMENTS = (
    "mlflow",
    "numba",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "safetensors",
    "simplejpeg",
    "timm",
    "torch",
)


class EmbeddingModel:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, encoder: "LoadedEncoder", *, batch_size: int = 64) -> None:
        self._encoder = encoder
        self._batch_size = batch_size

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> NDArray[np.float32]:
        """Embed a batch of images: float32 [N, D].

        Args:
            data: see the module.
            params: there are none.

        Raises:
            ValueError: what is given is no batch of images.
        """
        from ssl_core.probe.features import embed

        del params
        images = images_in(data, channels=self._encoder.config.model.in_chans)
        return embed(self._encoder, images, batch_size=self._batch_size)


def images_in(data: Any, *, channels: int) -> list[NDArray[np.uint8]]:
    """The images of a batch, uint8 [H, W, C] each, from any of the forms that the module names."""
    batch = data[COLUMN] if hasattr(data, "columns") or isinstance(data, Mapping) else data
    items = cast(Sequence[Any], batch.tolist() if hasattr(batch, "columns") else list(batch))
    return [_image(item, channels) for item in items]


def _image(item: Any, channels: int) -> NDArray[np.uint8]:
    from ssl_core.data.decode import DecodeError, decode

    if not isinstance(item, str | bytes):
        return _pixels(np.asarray(item), channels)
    try:
        encoded = base64.b64decode(item, validate=True) if isinstance(item, str) else item
        return decode(encoded, channels=channels)
    except (binascii.Error, DecodeError) as error:
        raise ValueError(f"column {COLUMN}: not an image file's bytes or their base64 text: {error}") from error


def _pixels(array: NDArray[Any], channels: int) -> NDArray[np.uint8]:
    """One image as uint8 [H, W, C]; the last axis is the channels where both could be."""
    if array.ndim != 3 or channels not in (array.shape[0], array.shape[2]):
        raise ValueError(f"an image has the shape {array.shape}: expected [H, W, {channels}] or [{channels}, H, W]")
    if array.dtype == object:  # numbers that came as JSON
        array = np.asarray(array.tolist())
    if array.shape[2] != channels:
        array = array.transpose(1, 2, 0)
    if np.issubdtype(array.dtype, np.floating):
        array = np.rint(array * 255.0)
    if array.size and not (array.min() >= 0 and array.max() <= 255):
        raise ValueError("pixels are out of range: whole numbers go from 0 to 255, floating-point numbers from 0 to 1")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _load_pyfunc(data_path: str) -> EmbeddingModel:  # pyright: ignore[reportUnusedFunction] (MLflow calls it by name)
    from ssl_core.export import load_encoder

    return EmbeddingModel(load_encoder(Path(data_path)))


def signature(num_features: int) -> "ModelSignature":
    """A batch of objects named `image`, each an image in some form, to float32 [N, D]."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    inputs = Schema([TensorSpec(np.dtype(object), (-1,), COLUMN)])
    return ModelSignature(inputs, Schema([TensorSpec(np.dtype(np.float32), (-1, num_features))]))


def requirements() -> list[str]:
    """What loading needs, at the versions that are installed; this distribution first."""
    lines: list[str] = []
    for name in (DISTRIBUTION, *_REQUIREMENTS):
        try:
            lines.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:  # a checkout that was never installed
            lines.append(name)
    return lines


def save_flavour(folder: Path, export: Path, metadata: "Model") -> None:
    """Write the MLflow model of an exported encoder; its files lie in `data/<name of the export folder>`.

    Args:
        folder: where; must not exist.
        export: the exported encoder.
        metadata: MLflow's record of the model, which this completes.
    """
    import mlflow.pyfunc
    import pandas as pd

    from ssl_core.export import load_encoder

    config = load_encoder(export).config
    example = pd.DataFrame({COLUMN: [_example(config.model.image_size, config.model.in_chans)]})
    mlflow.pyfunc.save_model(
        str(folder),
        loader_module=__name__,
        data_path=str(export),
        mlflow_model=metadata,
        signature=signature(config.num_features),
        input_example=example,
        pip_requirements=requirements(),
    )


def _example(size: int, channels: int) -> str:
    """A small PNG in base64: a gradient."""
    import io

    from PIL import Image

    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    pixels = np.broadcast_to(ramp[:, None, None], (size, size, channels)).copy()
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()
