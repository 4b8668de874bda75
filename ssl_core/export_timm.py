"""An exported encoder as a folder that timm loads by itself, without this package.

model.safetensors   the weights
config.json         timm's own: architecture, arguments, input size and normalisation
README.md           the model card, with the line that loads it
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ssl_core.errors import UserError
from ssl_core.export import (
    CARD,
    WEIGHTS,
    ExportConfig,
    card,
    example_images,
    input_words,
    load_encoder,
    title_and_facts,
)
from ssl_core.nn.backbones import timm_arguments

TIMM_WEIGHTS = "model.safetensors"


@torch.inference_mode()
def save_timm_folder(export: Path, folder: Path) -> None:
    """Write the folder, load it as a user of timm would, and compare the features: they are equal to the bit.

    Args:
        export: the exported encoder.
        folder: is made.

    Raises:
        UserError: timm cannot express this encoder, or makes something else of it.
    """
    import timm  # not on top: `ssl_core.nn.backbones` goes before it

    loaded = load_encoder(export)
    model = loaded.config.model
    if model.stem != "native":
        raise UserError(
            f"format=timm: timm cannot express this encoder, its {model.name} has no stem {model.stem} (the one for "
            "small images); the card of format=safetensors builds it in three lines, format=onnx needs none"
        )
    folder.mkdir(parents=True)
    shutil.copyfile(export / WEIGHTS, folder / TIMM_WEIGHTS)
    (folder / "config.json").write_text(json.dumps(timm_config(loaded.config), indent=2) + "\n", encoding="utf-8")
    title, facts = title_and_facts((export / CARD).read_text(encoding="utf-8"))
    code = ["import timm", "", 'model = timm.create_model("local-dir:.", pretrained=True).eval()  # in this folder']
    (folder / CARD).write_text(card(title, input_words(loaded.config), code, facts), encoding="utf-8")
    images = example_images(loaded.config, 3)
    try:
        again: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        reason = None if torch.equal(again(images), loaded.encoder(images)) else "its features are others"
    except (RuntimeError, TypeError, ValueError, KeyError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if reason is not None:
        raise UserError(
            f"format=timm: timm {timm.__version__} makes another model of {model.name} ({reason[:200]}): use another "
            "format"
        )


def timm_config(config: ExportConfig) -> dict[str, Any]:
    """What timm's `config.json` says of an encoder; images are prepared as the probe does it."""
    import timm

    model, arguments = config.model, timm_arguments(config.model)
    input_size = [model.in_chans, model.image_size, model.image_size]
    prepared = {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center"}
    known = timm.get_pretrained_cfg(model.name)
    return {
        "architecture": model.name.partition(".")[0],
        "num_classes": 0,
        "num_features": config.num_features,
        "model_args": {name: value for name, value in arguments.items() if name not in ("num_classes", "in_chans")},
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": input_size,
            "fixed_input_size": bool(known is not None and known.fixed_input_size),
            **prepared,
            "mean": list(config.mean),
            "std": list(config.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": None,
            "classifier": None,
        },
    }
