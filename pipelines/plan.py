"""What a pretraining run is: typed configuration, and everything that follows from it before anything starts.

The driver makes a `Plan` to check all inputs; every worker makes the same one again from the same values.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from pipelines.config import typed
from pipelines.pretrain_config import DataConfig, ModelSection, PretrainConfig, TrainConfig, seconds_in
from ssl_core.data.data_set import DataSet, load_data_set
from ssl_core.data.integrity import check_shards, verify_shards
from ssl_core.data.loader import Schedule
from ssl_core.errors import UserError
from ssl_core.export import ExportConfig
from ssl_core.lanes import Lanes
from ssl_core.methods import METHODS, build_method
from ssl_core.methods.base import Method
from ssl_core.nn.backbones import Encoder, build_encoder, check_takes, checkpoint_activations
from ssl_core.probe.labelled import LabelledSet, hold_out, labelled_set
from ssl_core.storage.local import local_path
from ssl_core.storage.s3 import is_s3
from ssl_core.train.saver import SaveConfig
from ssl_core.train.step import StepConfig
from ssl_core.views.recipes import CropConfig, CropRecipe

_MOST_STEPS_TO_PREPARE = 64
_EAGER_HASH_BYTES = 4 << 30  # the driver hashes so much before it starts; workers hash the rest when they open it


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked run: what follows from its configuration, for one worker of `lanes.world`."""

    values: Mapping[str, Any]  # as composed: what a worker makes the same plan from
    config: PretrainConfig
    train_data: DataSet
    lanes: Lanes
    schedule: Schedule
    total_steps: int
    views: CropConfig
    method: Any  # the dataclass METHODS[…].config
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def step(self) -> StepConfig:
        """How a step is computed."""
        train = self.config.train
        return StepConfig(
            total_steps=self.total_steps,
            seed=self.config.seed,
            precision=train.precision,
            micro_batch=train.micro_batch,
            compile=train.compile,
            skip_non_finite=train.max_skipped > 0,
            mean=self.mean,
            std=self.std,
        )

    @property
    def export(self) -> ExportConfig:
        """What the exported encoder's `config.json` says."""
        encoder = self.random_encoder()
        return ExportConfig(
            model=self.config.model.encoder, mean=self.mean, std=self.std, num_features=encoder.num_features
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the weights depend on; a run is continued only with the same."""
        config, train = self.config, self.config.train
        return {
            "seed": config.seed,
            "init": config.init,
            "method": config.method,
            "model": {**asdict(config.model), "mean": list(self.mean), "std": list(self.std)},
            "views": config.views,
            "optim": {**asdict(config.optim), "betas": list(config.optim.betas)},
            "data": {
                "manifest": self.train_data.digest,
                "weights": list(self.train_data.weights) if self.train_data.shares else None,
                "lanes": self.lanes.count,
                "block": config.data.block,
            },
            "train": {
                "steps": self.total_steps,
                "global_batch": train.global_batch,
                "micro_batch": train.micro_batch,
                "bn": train.bn,
                "precision": train.precision,
                "compile": train.compile,
            },
        }

    @property
    def workers(self) -> tuple[int, int]:
        """The least and the most workers that an attempt may have."""
        least, most = worker_bounds(self.config.train)
        return least, max(least, min(most, self.lanes.count))

    def random_encoder(self) -> Encoder:
        """The encoder with its keyed initial weights: where the run starts, and the probe's baseline."""
        return build_encoder(self.config.model.encoder, seed=self.config.seed)

    def build_method(self, encoder: Encoder) -> Method:
        """The method around an encoder."""
        if self.config.train.checkpoint_activations:
            checkpoint_activations(encoder)
        name = self.config.method["name"]
        return build_method(name, self.method, encoder=encoder, recipe=CropRecipe.of(self.views), seed=self.config.seed)


def with_absolute_paths(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same configuration with local folders as absolute paths: a worker's present folder is another one."""
    result = {**values, "checkpoints": _absolute(values["checkpoints"])}
    for section in ("data", "probe"):
        result[section] = {**values[section], **{name: _absolute(values[section][name]) for name in ("train", "val")}}
    if isinstance(values["data"]["cache"], str):
        result["data"]["cache"] = str(local_path(values["data"]["cache"]).resolve())
    return result


def _absolute(place: Any) -> Any:
    if isinstance(place, list):
        return [_absolute(one) for one in cast(list[Any], place)]
    return str(local_path(place).resolve()) if isinstance(place, str) and not is_s3(place) else place


def make_plan(mapping: Mapping[str, Any], *, rank: int = 0, workers: int | None = None) -> Plan:
    """Type and check a composed configuration; raises UserError on anything that cannot run.

    Args:
        mapping: as composed.
        rank: the worker that the plan is for.
        workers: how many there are; None: as many as there may be.
    """
    config = typed(PretrainConfig, mapping)
    train, model = config.train, config.model
    if config.data.train is None:
        raise UserError("data.train is missing: name a folder with a manifest (python -m pipelines.pack makes one)")
    train_data = load_data_set(config.data.train, config.data.weights)
    lanes = Lanes.cut(train.global_batch, config.data.lanes)
    least, most = worker_bounds(train)
    world = workers or max(least, min(most, lanes.count))
    lanes = Lanes.cut(train.global_batch, config.data.lanes, rank=rank, world=world)
    schedule = Schedule(
        shard_samples=train_data.shard_samples,
        seed=config.seed,
        block=config.data.block,
        lanes=lanes,
        shares=train_data.shares,
    )
    if train.micro_batch is not None and train.micro_batch % lanes.size:
        raise UserError(
            f"train.micro_batch={train.micro_batch} is not a multiple of a lane's {lanes.size} samples: "
            "a micro-batch is whole lanes"
        )
    if train.micro_batch is not None and train.bn == "global":
        raise UserError(
            "train.bn=global needs the whole batch in one piece, train.micro_batch cuts it: use one or the other"
        )
    mean, std = _normalisation(model, train_data)
    name = config.method.get("name")
    if name not in METHODS:
        raise UserError(f"unknown method.name={name}: known are {', '.join(METHODS)}")
    entry = METHODS[cast(str, name)]
    method = typed(entry.config, {key: value for key, value in config.method.items() if key != "name"}, "method.")
    image_size = config.views.get("image_size") or model.image_size
    views = {**entry.view_values(method, config.views), "image_size": image_size, "channels": model.in_chans}
    return Plan(
        values=mapping,
        config=config,
        train_data=train_data,
        lanes=lanes,
        schedule=schedule,
        total_steps=_total_steps(train, schedule),
        views=typed(CropConfig, views, "views."),
        method=method,
        mean=mean,
        std=std,
    )


def check_inputs(plan: Plan) -> None:
    """Look at what the plan names: shards, checksums, probe data, model and method; raises UserError."""
    parts = plan.train_data.parts
    for part in parts:
        check_shards(part)
        if not is_s3(part.root):
            verify_shards(part, max_bytes=_EAGER_HASH_BYTES // len(parts))
    check_cache(plan)
    save_config(plan.config.train)
    _ = plan.config.ray.patience_seconds
    method = plan.build_method(plan.random_encoder())
    for group in method.recipe.groups:
        check_takes(method.encoder, channels=group.channels, height=group.height, width=group.width)
    for data in probe_data(plan) or ():
        check_labels(data)
        for part in data.parts:
            check_shards(part)


def check_labels(data: DataSet) -> None:
    """Every sample of a probe's data has a label, one that means the same in all parts; raises UserError."""
    if not all(part.labelled for part in data.parts):
        raise UserError(
            f"{data.name} has {data.labelled_samples} labels for {data.num_samples} samples: a probe needs a label for "
            "each, name labelled folders as probe.train and probe.val"
        )
    _ = data.classes


def check_cache(plan: Plan) -> None:
    """The cache holds what the lanes of a node read from at a time; raises UserError with the number of bytes."""
    lanes, cache_gb = _lanes_of_a_node(plan), plan.config.data.cache_gb
    shards = lanes * (plan.schedule.epoch(0).shards_per_block() + 1)
    largest = sorted((shard.bytes for shard in plan.train_data.bucket_shards), reverse=True)[:shards]
    if sum(largest) > plan.config.data.shard_cache.max_bytes:
        raise UserError(
            f"data.cache_gb={cache_gb:g} is too small: {lanes} lanes on a node read from {len(largest)} shards at a "
            f"time, up to {sum(largest) / 1e9:.3g} GB: raise it, or use smaller shards, a smaller data.block or fewer "
            "lanes"
        )


def steps_to_prepare(plan: Plan) -> int:
    """How many steps ahead shards are fetched: a cache has room for them in one half, beside the blocks in use."""
    room = plan.config.data.shard_cache.max_bytes / 2
    sample_bytes = plan.train_data.num_bytes / plan.train_data.num_samples
    samples_a_lane = room / sample_bytes / _lanes_of_a_node(plan) - plan.config.data.block
    return int(min(max(samples_a_lane / plan.lanes.size, 0), _MOST_STEPS_TO_PREPARE))


def _lanes_of_a_node(plan: Plan) -> int:
    """At most: all of a Ray of its own, else those of as many workers as the driver's machine would have."""
    lanes = plan.lanes
    workers = lanes.world if plan.config.ray.cluster is None else min(lanes.world, default_workers())
    return min(lanes.count, len(lanes.owned) * workers)


def probe_data(plan: Plan) -> tuple[DataSet, DataSet] | None:
    """The labelled (training, validation) sets of the probe, or None where there is nothing to validate on.

    With `probe.held_out` both are the training set, which `probe_sets` cuts in two.
    """
    config = plan.config
    val = config.probe.val or config.data.val
    if config.probe.held_out is not None:
        if val is not None:
            raise UserError(
                f"probe.held_out={config.probe.held_out:g} takes the place of a validation set: leave out {val}, or it"
            )
        train = load_data_set(config.probe.train) if config.probe.train else plan.train_data.unweighted
        return train, train
    if val is None:
        if config.probe.train is not None:
            raise UserError("probe.train is named but probe.val is not: name a labelled validation folder")
        return None
    train = load_data_set(config.probe.train) if config.probe.train else plan.train_data.unweighted
    return train, load_data_set(val)


def probe_sets(plan: Plan) -> tuple[LabelledSet, LabelledSet] | None:
    """What the probe fits on and what it is judged by, ready to be read; None as in `probe_data`."""
    data, model, held_out = probe_data(plan), plan.config.model, plan.config.probe.held_out
    if data is None:
        return None
    train, val = (labelled_set(one, channels=model.in_chans, cache=plan.config.data.shard_cache) for one in data)
    return (train, val) if held_out is None else hold_out(train, held_out)


def worker_bounds(train: TrainConfig) -> tuple[int, int]:
    """The least and the most workers that `train.workers` asks for."""
    if isinstance(train.workers, tuple):
        return train.workers
    number = default_workers() if train.workers is None else train.workers
    return number, number


def default_workers() -> int:
    """One for each GPU that this machine shows, at least one."""
    import torch

    return max(1, torch.cuda.device_count())


def threads_per_worker(plan: Plan, workers_here: int) -> int:
    """CPU threads that a worker computes with, where so many share its machine: its share of the cores."""
    return plan.config.train.threads or max(1, (os.cpu_count() or 1) // workers_here)


def loader_processes(data: DataConfig, *, gpu: bool, cores: int) -> int:
    """Loader processes of a worker: as asked for; or with a GPU as many as keep its cores busy, but for its own."""
    if data.processes is not None:
        return data.processes
    return max(1, (cores - 1) // data.threads) if gpu else 0


def save_config(train: TrainConfig) -> SaveConfig:
    """When checkpoints are written; raises UserError."""
    every, patience = str(train.checkpoint_every).strip(), seconds_in(train.store_patience)
    if patience is None:
        raise UserError(f"train.store_patience={train.store_patience}: write a time (90s, 10m, 2h)")
    config = SaveConfig(keep=train.keep_checkpoints, patience_seconds=patience)
    if re.fullmatch(r"0*[1-9]\d*", every):
        return replace(config, every_steps=int(every))
    seconds = seconds_in(every)
    if seconds is None:
        raise UserError(f"train.checkpoint_every={every}: write steps (500) or a time (90s, 10m, 2h)")
    return replace(config, every_seconds=seconds)


def _total_steps(train: TrainConfig, schedule: Schedule) -> int:
    per_epoch = schedule.steps_per_epoch
    steps = train.epochs * per_epoch if train.steps is None else train.steps
    if steps < 1:
        raise UserError(f"train.steps={train.steps}, train.epochs={train.epochs}: a run needs at least one step")
    return steps


def _normalisation(model: ModelSection, data: DataSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if (model.mean is None) != (model.std is None):
        raise UserError("model.mean and model.std go together: name both or neither")
    mean, std = data.normalisation(model.in_chans) if model.mean is None else (model.mean, model.std or ())
    if not len(mean) == len(std) == model.in_chans:
        raise UserError(
            f"model.mean and model.std have {len(mean)} and {len(std)} values for model.in_chans={model.in_chans}: "
            "give one a channel"
        )
    return mean, std
