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
from timm.models import group_parameters  # noqa: E402 (the same)

_DROPOUT_ARGUMENTS = (
    "drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "pos_drop_rate",
    "patch_drop_rate",
    "drop_path_rate",
)
_WEIGHT_ARGUMENTS = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "features_only",
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
        UserError: timm has no such model, does not take these arguments, or there is dropout in it, which timm draws
            from the global generator and which could therefore not be repeated.
    """
    for name in _DROPOUT_ARGUMENTS:
        if config.arguments.get(name):
            raise UserError(
                f"model.arguments.{name}={config.arguments[name]}: dropout is refused in pretraining, set it to 0"
            )
    for name in _WEIGHT_ARGUMENTS:
        if name in config.arguments:
            raise UserError(f"model.arguments.{name} is not for the model's shape: init=… says where weights come from")
    if config.name not in timm.list_models(module="") and not timm.is_model(config.name):
        near = get_close_matches(config.name, timm.list_models(), n=1)
        raise UserError(
            f"model.name={config.name} is not a timm model" + (f": did you mean {near[0]}?" if near else "")
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.asarray(rng.key(seed, "encoder.init"))) & (2**63 - 1))
        return Encoder(*_create(config))


def timm_arguments(config: ModelConfig) -> dict[str, Any]:
    """What `timm.create_model` is given besides the name; models whose input size is fixed are told it."""
    arguments: dict[str, Any] = {"num_classes": 0, "in_chans": config.in_chans, **config.arguments}
    pretrained = timm.get_pretrained_cfg(config.name)
    if pretrained is not None and pretrained.fixed_input_size:
        arguments.setdefault("img_size", config.image_size)
    return arguments


def _create(config: ModelConfig) -> tuple[nn.Module, int]:
    try:
        backbone = timm.create_model(config.name, pretrained=False, **timm_arguments(config))
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"timm cannot build model.name={config.name} with {config.arguments}: {error}") from error
    dropout = _first_dropout(backbone)
    if dropout is not None:
        raise UserError(
            f"model.name={config.name} has dropout by default ({dropout}), which is refused in pretraining: "
            "set model.arguments.drop_path_rate=0 or model.arguments.drop_rate=0, or use another model"
        )
    if config.stem == "cifar":
        apply_cifar_stem(backbone)
    return backbone, _output_features(backbone, config)


@torch.no_grad()
def _output_features(backbone: nn.Module, config: ModelConfig) -> int:
    """Width of what the backbone makes of an image; timm's `num_features` is that of its last stage."""
    image = torch.zeros(1, config.in_chans, config.image_size, config.image_size)
    try:
        features = cast(Tensor, backbone.eval()(image))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.name={config.name} does not take model.image_size={config.image_size}: {reason}"
        ) from error
    backbone.train()
    if features.ndim != 2:
        shape = list(features.shape[1:])
        raise UserError(
            f"model.name={config.name} with {config.arguments} gives {shape} an image instead of one vector"
        )
    return features.shape[1]


@torch.no_grad()
def check_takes(encoder: Encoder, *, channels: int, height: int, width: int) -> None:
    """Try one black image of this size; raises UserError where the encoder takes another size alone."""
    try:
        encoder.eval()(torch.zeros(1, channels, height, width))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"the model does not take views of {height} × {width} px ({reason}): leave views.image_size out, or choose "
            "a model that takes any size, such as a ResNet"
        ) from error
    finally:
        encoder.train()


def checkpoint_activations(encoder: Encoder) -> None:
    """Let the backbone keep only its blocks' inputs for backward and compute the rest again (arXiv 1604.06174).

    Raises:
        UserError: timm has not prepared this model for it.
    """
    name = type(encoder.backbone).__name__
    try:
        cast(Any, encoder.backbone).set_grad_checkpointing(True)
    except (AttributeError, AssertionError) as error:
        raise UserError(
            f"train.checkpoint_activations=true: timm's {name} cannot do that; use train.micro_batch instead"
        ) from error


def layer_scales(encoder: Encoder, *, decay: float) -> dict[nn.Parameter, float]:
    """Each of the encoder's parameters' factor of the rate: `decay` for its last layer, `decay`² for the next.

    Layers are as timm cuts this model: of a Vision Transformer the patch embedding and each block, the last one with
    the norm after it.

    Raises:
        UserError: timm does not say which layers this model has.
    """
    backbone = cast(Any, encoder.backbone)
    if not hasattr(backbone, "group_matcher"):
        name = type(backbone).__name__
        raise UserError(f"optim.layer_decay={decay}: timm does not say which layers {name} has; use null")
    layers = cast(dict[str, int], group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True))
    top = max(layers.values())
    return {parameter: decay ** (top + 1 - layers[name]) for name, parameter in backbone.named_parameters()}


def _first_dropout(backbone: nn.Module) -> str | None:
    """The first module that would draw from torch's global generator in training, None where there is none."""
    for name, module in backbone.named_modules():
        rates = ["drop_prob", "drop_rate"] + (["p", "prob"] if "Drop" in type(module).__name__ else [])
        if any((getattr(module, rate, 0.0) or 0.0) > 0 for rate in rates):
            return name or type(module).__name__
    return None


def apply_cifar_stem(backbone: nn.Module) -> None:
    """Replace a ResNet's 7 × 7 stride-2 stem and max-pooling by one 3 × 3 convolution (SimCLR, appendix B.9)."""
    native = getattr(backbone, "conv1", None)
    if not isinstance(native, nn.Conv2d) or not hasattr(backbone, "maxpool"):
        raise UserError("model.stem=cifar is for timm's ResNets with a convolutional stem: use model.stem=native")
    stem = nn.Conv2d(native.in_channels, native.out_channels, 3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    backbone.conv1, backbone.maxpool = stem, nn.Identity()
