"""The loop in one process: to the end, stopped, broken off and resumed; history and bytes are the same."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_core import rng
from ssl_core.collectives import Collectives
from ssl_core.data.loader import LaneLoader, Schedule
from ssl_core.data.quarantine import Quarantine
from ssl_core.lanes import Lanes
from ssl_core.methods import METHODS, build_method
from ssl_core.methods.base import as_module
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.nn.lane_batch_norm import use_lane_batch_norm
from ssl_core.optim import OptimConfig
from ssl_core.train.checkpoint import CheckpointStore
from ssl_core.train.context import STOP_FILE, InProcessContext
from ssl_core.train.loop import LoopConfig, LoopResult, train
from ssl_core.train.records import join_parts
from ssl_core.train.saved_steps import CHECKPOINTS
from ssl_core.train.saver import SaveConfig
from ssl_core.train.step import StepConfig, TrainStep
from ssl_core.views.recipes import recipe
from tests.contract.tiny_runs import tiny_run

PIXELS, STEPS, SAMPLES = 12, 9, 50  # 50 samples, batches of 16: three steps an epoch and a tail of two

RESNET = ModelConfig(
    name="resnet18", image_size=PIXELS, stem="cifar", arguments={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
)
VIT = ModelConfig(
    name="vit_tiny_patch16_224",
    image_size=PIXELS,
    arguments={"patch_size": 4, "depth": 1, "num_heads": 2, "embed_dim": 16, "global_pool": "avg"},
)


class Broken(RuntimeError):
    """The fault of a test."""


class NoiseImages:
    """Keyed noise; raises at a given number of images."""

    def __init__(self, fail_after: int | None = None) -> None:
        self._left = fail_after

    def image(self, position: int) -> np.ndarray:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                raise Broken
        bits = rng.random_bits(rng.key(1, "test.noise", position), PIXELS * PIXELS * 3) & 0xFF
        return bits.astype(np.uint8).reshape(PIXELS, PIXELS, 3)


def attempt(
    folder: Path, number: int, *, name: str = "simclr", fail_after: int | None = None, keep: int = 2
) -> tuple[LoopResult, TrainStep]:
    """One attempt of the same run."""
    lanes = Lanes.cut(16, 4)
    encoder = build_encoder(VIT if name == "mae" else RESNET)
    views = recipe("simclr", image_size=PIXELS, views=1 if name == "mae" else 2)
    method = build_method(name, tiny_run(name).method, encoder=encoder, recipe=views, seed=0)
    use_lane_batch_norm(as_module(method))
    step = TrainStep(
        method,
        StepConfig(total_steps=STEPS, mean=(0.5,) * 3, std=(0.3,) * 3),
        optim=OptimConfig(name="lars", base_rate=1.0),
        lanes=lanes,
        collectives=Collectives(),
        device=torch.device("cpu"),
    )
    schedule = Schedule(shard_samples=np.asarray([20, 30]), seed=0, block=8, lanes=lanes)
    loader = LaneLoader(NoiseImages(fail_after), views, schedule)
    config = LoopConfig(
        total_steps=STEPS,
        steps_per_epoch=schedule.steps_per_epoch,
        global_batch=16,
        save=SaveConfig(every_steps=2, keep=keep),
        log_every=1,
        audit=True,
    )
    context = InProcessContext(folder=folder, attempt=number)
    return train(step, loader, Quarantine(SAMPLES), config, context), step


@pytest.fixture(scope="module", params=METHODS)
def calm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """The undisturbed run of each method: its name, folder and final state."""
    folder = tmp_path_factory.mktemp("calm")
    result, step = attempt(folder, 1, name=request.param)
    assert result.finished
    assert result.steps == STEPS
    return request.param, folder, step.module.state_dict() | step.optimizer_state()


def assert_same(step: TrainStep, expected: dict[str, torch.Tensor]) -> None:
    found = step.module.state_dict() | step.optimizer_state()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("images", [1, 50, 16 * 7 + 5])
def test_broken_off_and_resumed_is_bit_equal(calm: tuple[str, Path, Any], tmp_path: Path, images: int) -> None:
    name, folder, expected = calm
    with pytest.raises(Broken):
        attempt(tmp_path, 1, name=name, fail_after=images)
    result, step = attempt(tmp_path, 2, name=name)
    assert result.finished
    assert_same(step, expected)
    assert join_parts(tmp_path, "audit") == join_parts(folder, "audit")
    assert [line["step"] for line in join_parts(tmp_path, "metrics")] == list(range(1, STEPS + 1))


def test_each_sample_once_an_epoch(calm: tuple[str, Path, Any]) -> None:
    lines = join_parts(calm[1], "audit")
    for epoch in range(3):
        seen = [position for line in lines if line["epoch"] == epoch for position in line["ids"]]
        assert len(seen) == len(set(seen)) == 48
    assert len({line["views"] for line in lines}) == STEPS


def test_asked_to_stop_it_saves_the_step_that_is_done(calm: tuple[str, Path, Any], tmp_path: Path) -> None:
    name, _, expected = calm
    (tmp_path / STOP_FILE).touch()
    result, _ = attempt(tmp_path, 1, name=name)
    assert (result.finished, result.steps) == (False, 2)  # the step under way when the first one's result is read
    assert [one.step for one in CheckpointStore(tmp_path / CHECKPOINTS).saved()] == [2]
    assert [line["step"] for line in join_parts(tmp_path, "audit")] == [0, 1]
    assert [line["step"] for line in join_parts(tmp_path, "metrics")] == [1, 2]
    (tmp_path / STOP_FILE).unlink()
    assert_same(attempt(tmp_path, 2, name=name)[1], expected)


@pytest.mark.parametrize("damage", ["flip", "cut", "no file"])
def test_a_damaged_checkpoint_is_said_and_the_one_before_taken(tmp_path: Path, damage: str) -> None:
    attempt(tmp_path, 1)
    store = CheckpointStore(tmp_path / CHECKPOINTS)
    newest = tmp_path / CHECKPOINTS / store.saved()[0].name
    model = newest / "model.safetensors"
    content = bytearray(model.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    model.write_bytes(content[:-5] if damage == "cut" else content)
    if damage == "no file":
        model.unlink()
    checkpoint, complaints = store.newest_readable()
    assert checkpoint is not None
    assert checkpoint.step == STEPS - 1
    assert len(complaints) == 1
    assert newest.name in complaints[0]

    attempt(tmp_path, 2)
    events = [json.loads(line) for line in (tmp_path / "events/attempt-0002.jsonl").read_text().splitlines()]
    assert any(newest.name in line.get("event", "") for line in events)


def test_only_so_many_checkpoints_are_kept(tmp_path: Path) -> None:
    attempt(tmp_path, 1, keep=3)
    assert [one.step for one in CheckpointStore(tmp_path / CHECKPOINTS).saved()] == [9, 8, 6]
    assert not list((tmp_path / CHECKPOINTS).rglob(".*"))
