"""All keys of `pretrain`, typed: what `configs/pretrain.yaml` gives and the command line changes."""

import os
import re
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.tracking import TrackingConfig
from ssl_core.errors import UserError
from ssl_core.nn.backbones import ModelConfig
from ssl_core.optim import OptimConfig
from ssl_core.storage.cache import CacheConfig
from ssl_core.train.step import Precision


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Keys below `data`."""

    train: str | tuple[str, ...] | None = None
    weights: tuple[float, ...] | None = None
    val: str | None = None
    lanes: int | None = None
    block: int = 8192
    max_bad: int | float = 0.001
    threads: int = 1
    processes: int | None = None
    colors: Literal["loader", "device"] | None = None
    cache: str | None = None
    cache_gb: float = 100.0

    def __post_init__(self) -> None:
        """Refuse what no loader can do."""
        for name, least in (("threads", 1), ("processes", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"data.{name}={value}: use at least {least}")

    @property
    def shard_cache(self) -> CacheConfig:
        """Where a bucket's shards are kept."""
        return CacheConfig(folder=self.cache, max_bytes=int(self.cache_gb * 1e9))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Keys below `train`."""

    workers: int | tuple[int, int] | None = None
    device: Literal["cpu", "gpu"] | None = None
    hang_timeout: float | None = None
    max_failures: int = 3
    threads: int | None = None
    epochs: int = 100
    steps: int | None = None
    global_batch: int = 256
    micro_batch: int | None = None
    bn: Literal["lane", "global"] = "lane"
    precision: Precision = "fp32"
    compile: bool = False
    checkpoint_activations: bool = False
    audit: bool = False
    profile: bool = False
    checkpoint_every: int | str = "10m"
    keep_checkpoints: int = 2
    store_patience: str = "30m"
    max_skipped: int = 0
    log_every: int = 10
    health_every: int = 50

    def __post_init__(self) -> None:
        """Refuse what no loop can do."""
        least_values = {"keep_checkpoints": 1, "log_every": 1, "health_every": 1, "max_skipped": 0, "max_failures": 0}
        for name, least in least_values.items():
            if getattr(self, name) < least:
                raise UserError(f"train.{name}={getattr(self, name)}: use at least {least}")
        if self.hang_timeout is not None and self.hang_timeout < 3:
            raise UserError(f"train.hang_timeout={self.hang_timeout:g}: use at least 3 seconds, or null")
        if isinstance(self.workers, tuple) and not 1 <= self.workers[0] <= self.workers[1]:
            least, most = self.workers
            raise UserError(f"train.workers=[{least},{most}]: write the least and the most, from 1")


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """Keys below `probe`: labelled data, where it is not the training data's own, and the k-NN curve while training."""

    train: str | None = None
    val: str | None = None
    max_train: int | None = None
    max_val: int | None = None
    held_out: float | None = None
    at_end: bool = True
    every: int | None = 5
    online_train: int = 5000
    online_val: int = 1000

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise UserError(f"probe.held_out={self.held_out:g}: use a share between 0 and 1, or null")
        for name in ("every", "online_train", "online_val"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"probe.{name}={value}: use at least 1{' or null' if name == 'every' else ''}")


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Keys below `ray`."""

    address: str | None = None
    patience: str = "5m"

    @property
    def cluster(self) -> str | None:
        """The cluster that is joined: the named one, else that of `$RAY_ADDRESS`; None: a Ray of the command's own."""
        return self.address or os.environ.get("RAY_ADDRESS")

    @property
    def patience_seconds(self) -> float:
        """The same in seconds; raises UserError where it is no time."""
        seconds = seconds_in(self.patience)
        if seconds is None:
            raise UserError(f"ray.patience={self.patience}: write a time (90s, 10m, 2h)")
        return seconds


def seconds_in(text: str) -> float | None:
    """`90s`, `10m` or `2h` in seconds; None where it is nothing of the kind, or no time at all."""
    found = re.fullmatch(r"(\d+)\s*([smh])", text.strip())
    seconds = int(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] if found else 0
    return float(seconds) if seconds else None


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Keys below `model`: the encoder and, where named, the normalisation of its input."""

    name: str
    image_size: int = 224
    in_chans: int = 3
    stem: Literal["native", "cifar"] = "native"
    arguments: dict[str, Any]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def encoder(self) -> ModelConfig:
        """Without the normalisation."""
        fields = {name: value for name, value in vars(self).items() if name not in ("mean", "std")}
        return ModelConfig(**fields)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """All keys of `pretrain`."""

    seed: int = 0
    name: str | None = None
    storage: str = "runs"
    checkpoints: str | None = None
    init: str | None = None
    plan: bool = False
    register: str | None = None
    data: DataConfig
    train: TrainConfig
    probe: ProbeData
    tracking: TrackingConfig
    ray: RayConfig
    method: dict[str, Any]
    views: dict[str, Any]
    optim: OptimConfig
    model: ModelSection
