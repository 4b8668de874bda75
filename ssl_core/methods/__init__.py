"""The methods, by name; a new one is a file, a line here, a YAML and a row in the documentation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_core import rng
from ssl_core.data.lane_views import Recipe
from ssl_core.methods.base import Method
from ssl_core.methods.mae import MAE, MAEConfig
from ssl_core.methods.moco import MoCo, MoCoConfig, moco_views
from ssl_core.methods.moco_v3 import MoCoV3, MoCoV3Config
from ssl_core.methods.simclr import SimCLR, SimCLRConfig
from ssl_core.nn.backbones import Encoder
from ssl_core.types import ViewBatch


def _no_defaults(config: Any) -> Mapping[str, Any]:
    return {}


def _no_pictures(method: Any, batch: ViewBatch) -> Mapping[str, Tensor]:
    return {}


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """A method, as the rest of the project finds it.

    Attributes:
        build: its class.
        config: the dataclass of its numbers.
        views: those numbers → keys below `views` that follow from them where null.
        pictures: method, some samples → what it makes of them, for people to look at: a title → normalised pixels
            [samples, steps, K, H, W].
    """

    build: Callable[..., Method]
    config: type[Any]
    views: Callable[[Any], Mapping[str, Any]] = _no_defaults
    pictures: Callable[[Any, ViewBatch], Mapping[str, Tensor]] = _no_pictures

    def view_values(self, config: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        """The keys below `views`, with what follows from the method's numbers."""
        given = {key: value for key, value in values.items() if value is not None}
        return {**values, **self.views(config), **given}


METHODS: dict[str, MethodEntry] = {
    "simclr": MethodEntry(build=SimCLR, config=SimCLRConfig),
    "moco": MethodEntry(build=MoCo, config=MoCoConfig, views=moco_views),
    "moco_v3": MethodEntry(build=MoCoV3, config=MoCoV3Config),
    "mae": MethodEntry(build=MAE, config=MAEConfig, pictures=MAE.pictures),
}


def build_method(name: str, config: Any, *, encoder: Encoder, recipe: Recipe, seed: int) -> Method:
    """Build a method whose own networks' initial weights are a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.key(seed, "method.init")) & (2**63 - 1))
        return METHODS[name].build(config, encoder=encoder, recipe=recipe)
