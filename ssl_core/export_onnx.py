"""An exported encoder as an ONNX graph that takes pixels: no torch, timm or normalisation is left to its user.

encoder.onnx   float32 [N, C, S, S] from 0 to 1 → float32 [N, D]; N is free, the normalisation is in the graph
README.md      the model card, with the lines that run it
"""

import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_core.errors import UserError
from ssl_core.export import CARD, ExportConfig, LoadedEncoder, card, example_images, load_encoder, title_and_facts

ONNX_FILE = "encoder.onnx"
OPSET = 18
TOLERANCE = 1e-4  # of the largest feature
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ONE_FILE_BYTES = 1 << 30  # protobuf ends at 2 GiB: the weights of larger models lie beside the graph


class FromPixels(nn.Module):
    """Pixels from 0 to 1 → features: the normalisation, then the encoder."""

    mean: Tensor
    std: Tensor

    def __init__(self, loaded: LoadedEncoder) -> None:
        super().__init__()
        self.encoder = loaded.encoder
        self.register_buffer("mean", torch.tensor(loaded.config.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(loaded.config.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder((images - self.mean) / self.std)


def check_packages() -> None:
    """Raises UserError where the packages of the extra `export` are missing."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"format=onnx needs {', '.join(missing)}: pip install 'ssl-pipelines[export]'")


def save_onnx(export: Path, folder: Path) -> None:
    """Write the graph and its card, run it by onnxruntime at two batch sizes, and compare with torch.

    Args:
        export: the exported encoder.
        folder: is made.

    Raises:
        UserError: a package is missing, torch cannot export this encoder, or the graph gives other features.
    """
    check_packages()
    loaded = load_encoder(export)
    model = FromPixels(loaded).eval()
    folder.mkdir(parents=True)
    _write_graph(model, loaded.config, folder / ONNX_FILE)
    error = max(_difference(model, loaded.config, folder / ONNX_FILE, count) for count in (1, 5))
    if not error <= TOLERANCE:
        raise UserError(
            f"the ONNX graph of {loaded.config.model.name} gives other features than torch: they differ by {error:.1e} "
            f"of the largest, more than {TOLERANCE:g}; use format=safetensors"
        )
    title, facts = title_and_facts((export / CARD).read_text(encoding="utf-8"))
    text = card(title, _words(loaded.config, error), _CODE, facts)
    (folder / CARD).write_text(text, encoding="utf-8")


def _write_graph(model: nn.Module, config: ExportConfig, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations within torch and onnxscript
            program: Any = torch.onnx.export(
                model,
                (example_images(config, 2),),
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"torch cannot export {config.model.name} to ONNX: {reason[:200]}") from error
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # the lines of code it came from, with this machine's paths
    program.save(str(path), external_data=weights > _ONE_FILE_BYTES)


@torch.inference_mode()
def _difference(model: nn.Module, config: ExportConfig, path: Path, count: int) -> float:
    """The largest difference of a feature, as a share of the largest feature."""
    import onnxruntime

    images = example_images(config, count)
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found, expected = torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), model(images)
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _words(config: ExportConfig, error: float) -> str:
    shape = [config.model.in_chans, config.model.image_size, config.model.image_size]
    return (
        f"Input `images`: float32 [N, {', '.join(map(str, shape))}], pixels from 0 to 1; the normalisation is in the "
        f"graph. Output `features`: float32 [N, {config.num_features}]. ONNX opset {OPSET}; its features differ from "
        f"torch's by at most {error:.0e} of the largest one."
    )


_CODE = (
    "import numpy as np, onnxruntime",
    "",
    f'session = onnxruntime.InferenceSession("{ONNX_FILE}")',
    "shape = session.get_inputs()[0].shape[1:]",
    '(features,) = session.run(None, {"images": np.zeros((2, *shape), np.float32)})',
)
