"""Encoders: any of timm's models without its classifier, and the 32 px stem that timm cannot express."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from ssl_core import rng, torchvision_operators
from ssl_core.errors import UserError

torchvision_operators.declare_missing()

import timm  # noqa: E402 (timm imports torchvision, which needs the declaration above)

_DROPOUT_ARGUMENTS = (
    "drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "drop_path_rate",
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """An encoder: a timm model's name and arguments, and what it looks at."""

    name: str
    image_size: int = 224
    in_chans: int = 3
    stem: Literal["native", "cifar"] = "native"
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])


class Encoder(nn.Module):
    """A backbone that turns normalised images into feature vectors: [N, C, H, W] → [N, num_features]."""

    def __init__(self, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_features = num_features

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.backbone(x_NCHW)


def build_encoder(config: ModelConfig, *, seed: int = 0) -> Encoder:
    """Build an encoder whose initial weights are a function of the seed alone.

    Args:
        config: what to build.
        seed: the run's seed; torch's own generator is left as it was.

    Raises:
        UserError: timm has no such model, does not take these arguments, or they ask for dropout, which timm draws from
            the global generator and which could therefore not be repeated.
    """
    for name in _DROPOUT_ARGUMENTS:
        if config.arguments.get(name):
            raise UserError(
                f"model.arguments.{name}={config.arguments[name]}: dropout is refused in pretraining, set it to 0"
            )
    if config.name not in timm.list_models(module="") and not timm.is_model(config.name):
        near = get_close_matches(config.name, timm.list_models(), n=1)
        raise UserError(
            f"model.name={config.name} is not a timm model" + (f": did you mean {near[0]}?" if near else "")
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.asarray(rng.key(seed, "encoder.init"))) & (2**63 - 1))
        return Encoder(*_create(config))


def _create(config: ModelConfig) -> tuple[nn.Module, int]:
    arguments: dict[str, Any] = {"in_chans": config.in_chans, **config.arguments, "num_classes": 0}
    if "vit" in config.name and "img_size" not in arguments:
        arguments["img_size"] = config.image_size
    try:
        backbone = timm.create_model(config.name, pretrained=False, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"timm cannot build model.name={config.name} with {config.arguments}: {error}") from error
    if config.stem == "cifar":
        apply_cifar_stem(backbone)
    return backbone, cast(int, backbone.num_features)


def apply_cifar_stem(backbone: nn.Module) -> None:
    """Replace a ResNet's 7 × 7 stride-2 stem and max-pooling by one 3 × 3 convolution (SimCLR, appendix B.9)."""
    native = getattr(backbone, "conv1", None)
    if not isinstance(native, nn.Conv2d) or not hasattr(backbone, "maxpool"):
        raise UserError("model.stem=cifar is for timm's ResNets with a convolutional stem: use model.stem=native")
    stem = nn.Conv2d(native.in_channels, native.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    backbone.conv1, backbone.maxpool = stem, nn.Identity()
