"""The exported form of an encoder: safetensors, a `config.json` and a model card.

Loading runs no pickle and no code of the folder.

encoder.safetensors   the timm model's own state_dict names
config.json           format, timm name and arguments, stem, input size and normalisation, number of features
README.md             the model card
checksums.json        sha256 of each file, written last
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ssl_core import rng
from ssl_core.errors import UserError
from ssl_core.nn.backbones import Encoder, ModelConfig, build_encoder, timm_arguments
from ssl_core.storage.local import publish_bytes, sha256_file

FORMAT = 1
WEIGHTS, CONFIG, CARD, CHECKSUMS = "encoder.safetensors", "config.json", "README.md", "checksums.json"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What `config.json` says: how to build the encoder and what to feed it."""

    model: ModelConfig
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_features: int

    def to_json(self) -> dict[str, Any]:
        """The content of `config.json`."""
        timm = {"name": self.model.name, "arguments": self.model.arguments}
        size, channels = self.model.image_size, self.model.in_chans
        picture = {"size": size, "channels": channels, "mean": list(self.mean), "std": list(self.std)}
        return {
            "format": FORMAT,
            "timm": timm,
            "stem": self.model.stem,
            "input": picture,
            "num_features": self.num_features,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ExportConfig":
        """The reverse of `to_json`; raises KeyError or TypeError on another content."""
        timm, picture = content["timm"], content["input"]
        model = ModelConfig(
            name=timm["name"],
            image_size=picture["size"],
            in_chans=picture["channels"],
            stem=content["stem"],
            arguments=dict(timm["arguments"]),
        )
        mean, std = tuple(picture["mean"]), tuple(picture["std"])
        return cls(model=model, mean=mean, std=std, num_features=content["num_features"])


@dataclass(frozen=True, kw_only=True)
class LoadedEncoder:
    """An encoder in eval mode, and what it expects."""

    encoder: Encoder
    config: ExportConfig


def save_encoder(folder: Path, encoder: Encoder, config: ExportConfig, *, card: str | None = None) -> None:
    """Write the folder, weights as float32; the checksums come last, so a folder with them is complete."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in encoder.backbone.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        tensors[name] = tensor.float() if tensor.is_floating_point() else tensor
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CHECKSUMS).unlink(missing_ok=True)
    publish_bytes(folder / WEIGHTS, save(tensors))
    publish_bytes(folder / CONFIG, (json.dumps(config.to_json(), indent=2) + "\n").encode())
    publish_card(folder, card or model_card(config))


def publish_card(folder: Path, card: str) -> None:
    """Write the model card and then the checksums of all files."""
    publish_bytes(folder / CARD, card.encode())
    digests = {name: sha256_file(folder / name) for name in (WEIGHTS, CONFIG, CARD)}
    publish_bytes(folder / CHECKSUMS, (json.dumps(digests, indent=2) + "\n").encode())


def verify_export(folder: Path) -> None:
    """Every file is there and as it was written; raises UserError that names the first that is not."""
    try:
        digests = cast(dict[str, str], json.loads((folder / CHECKSUMS).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        what = "is not an exported encoder (it has no checksums.json)" if folder.is_dir() else "does not exist"
        raise UserError(
            f"model folder {folder} {what}: pull model=models:/<name>@champion to=<folder> makes one"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"model folder {folder}: checksums.json cannot be read ({error}): pull the model again"
        ) from error
    for name in (WEIGHTS, CONFIG, CARD):
        path = folder / name
        if not path.is_file() or digests.get(name) != sha256_file(path):
            raise UserError(
                f"model folder {folder}: {name} is missing or differs from its checksum: pull the model again"
            )


def export_digest(folder: Path) -> str:
    """One name for the whole content: the sha256 of `checksums.json`."""
    return sha256_file(folder / CHECKSUMS)


def load_encoder(folder: Path, *, verify: bool = True) -> LoadedEncoder:
    """Build the encoder and load its weights.

    Raises:
        UserError: the folder is missing, incomplete, damaged or of another format.
    """
    if verify:
        verify_export(folder)
    config = load_config(folder)
    encoder = build_encoder(config.model)
    try:
        load_weights(encoder, load_file(folder / WEIGHTS), where=str(folder))
    except (OSError, SafetensorError) as error:
        raise UserError(f"model folder {folder} cannot be read: {error!r}") from error
    return LoadedEncoder(encoder=encoder.eval(), config=config)


def load_config(folder: Path) -> ExportConfig:
    """What `config.json` says; raises UserError where it is missing, damaged or of another format."""
    try:
        content = cast(dict[str, Any], json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        if content["format"] != FORMAT:
            raise UserError(f"model folder {folder} has format {content['format']}, this version reads {FORMAT}")
        return ExportConfig.from_json(content)
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"model folder {folder} cannot be read: {error!r}") from error


def load_weights(encoder: Encoder, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """Load exported weights into an encoder; raises UserError where they belong to another model."""
    try:
        # a fresh mapping: without it torch marks BatchNorm's counters as missing in safetensors' plain dict
        encoder.backbone.load_state_dict(dict(tensors))
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"the weights of {where} do not fit the model: {first[:200]}") from error


def example_images(config: ExportConfig, count: int) -> Tensor:
    """Made-up images, always the same: float32 [count, C, S, S] from 0 to 1."""
    model = config.model
    shape = (count, model.in_chans, model.image_size, model.image_size)
    return torch.from_numpy(rng.uniform(rng.key(0, "export.example"), math.prod(shape))).float().view(shape)


def model_card(config: ExportConfig, *, title: str = "Self-supervised encoder", facts: Sequence[str] = ()) -> str:
    """Markdown: what the model is, how to load it in plain torch, what was measured."""
    model = config.model
    arguments = "".join(f", {name}={value!r}" for name, value in timm_arguments(model).items())
    code = [
        "import timm, torch",
        "from safetensors.torch import load_file",
        "",
        f'model = timm.create_model("{model.name}"{arguments})',
    ]
    if model.stem == "cifar":
        code.append(
            "model.conv1, model.maxpool = torch.nn.Conv2d("
            f"{model.in_chans}, model.conv1.out_channels, 3, padding=1, bias=False), torch.nn.Identity()"
        )
    code.append(f'model.load_state_dict(load_file("{WEIGHTS}")); model.eval()')
    return card(title, input_words(config), code, "\n".join(facts))


def input_words(config: ExportConfig) -> str:
    """What goes into the encoder and what comes out, in words."""
    model = config.model
    return (
        f"Input: float [N, {model.in_chans}, {model.image_size}, {model.image_size}], pixels in [0, 1] minus mean "
        f"{[round(value, 6) for value in config.mean]} over deviation {[round(value, 6) for value in config.std]}. "
        f"Output: {config.num_features} features an image."
    )


def card(title: str, words: str, code: Sequence[str], facts: str) -> str:
    """A model card from its parts; `facts` follow the code."""
    return "\n".join([f"# {title}", "", words, "", "```python", *code, "```", "", facts]).rstrip() + "\n"


def title_and_facts(text: str) -> tuple[str, str]:
    """Of a card that `card` made."""
    return text.splitlines()[0].removeprefix("# "), text.partition("\n```\n")[2].strip()
