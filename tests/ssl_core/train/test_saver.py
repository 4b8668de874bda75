"""Checkpoints beside the training: they cost no step, a store that refuses costs no work, the best is kept."""

import resource
import time
from collections.abc import Callable, Generator
from pathlib import Path
from threading import Event
from typing import Any

import boto3
import pytest
import torch
from tiny_engine import TOTAL_STEPS, Engine, Linear, make_engine
from torch import nn

from cluster.object_store import ObjectStore
from ssl_core.errors import NonFiniteLoss, Resumable, UserError
from ssl_core.methods.base import StepInfo
from ssl_core.storage.s3 import S3Location
from ssl_core.train import saver
from ssl_core.train.checkpoint import CheckpointStore, SupersededError
from ssl_core.train.records import join_parts, part_path, read_part
from ssl_core.train.saver import SaveConfig
from tests.faulty_proxy import faulty_proxy

EVERY_STEP = SaveConfig(every_steps=1, keep=20)
BALLAST = 1_000_000


class Heavy(Linear):
    """A method whose checkpoints are large beside its records, and which can be told what to do at a step."""

    ballast: torch.Tensor

    def __init__(self, at_step: Callable[[int], None] = lambda step: None) -> None:
        super().__init__()
        self.register_buffer("ballast", torch.zeros(BALLAST, dtype=torch.uint8))
        self.at_step = at_step

    def before_step(self, info: StepInfo) -> None:
        super().before_step(info)
        self.at_step(info.step)


@pytest.fixture
def disk() -> Generator[Callable[[bool], None]]:
    """Call it to have the disk refuse files as large as a checkpoint, or take them again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(is_full: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (BALLAST // 2 if is_full else before[0], before[1]))

    yield full
    full(False)


def events(engine: Engine, attempt: int = 1) -> list[str]:
    return [line["event"] for line in read_part(part_path(engine.folder, "events", attempt))[1]]


def saved(engine: Engine) -> list[int]:
    return sorted(one.step for one in CheckpointStore(engine.folder / "checkpoints").saved())


def state(engine: Engine) -> dict[str, torch.Tensor]:
    return engine.step.module.state_dict() | engine.step.optimizer_state()


def test_a_full_disk_costs_no_step(
    tmp_path: Path, disk: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver, "_TRY_AGAIN_SECONDS", 0.0)
    calm = make_engine(tmp_path / "calm", method=Heavy())
    calm.train(save=EVERY_STEP)

    def at_step(step: int) -> None:
        if step in (3, 5):
            time.sleep(0.3)  # what is being written is there by then
            disk(step == 3)

    engine = make_engine(tmp_path / "full", method=Heavy(at_step))
    assert engine.train(save=EVERY_STEP).finished
    said = events(engine)
    refused = [line for line in said if "cannot be written" in line]
    assert len(refused) == 1
    assert "File too large" in refused[0]
    assert "training goes on, the last good one is step 3" in refused[0]
    assert sum("checkpoints are written again" in line for line in said) == 1
    assert {1, 2, 3, TOTAL_STEPS} <= set(saved(engine))
    assert 4 not in saved(engine)
    assert not list(engine.folder.rglob(".*partial"))
    assert all(torch.equal(one, state(calm)[name]) for name, one in state(engine).items())


def test_a_disk_that_stays_full_stops_the_run_when_its_patience_is_over(
    tmp_path: Path, disk: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver, "_TRY_AGAIN_SECONDS", 0.1)

    def at_step(step: int) -> None:
        time.sleep(0.2)
        if step == 3:
            disk(True)

    engine = make_engine(tmp_path, method=Heavy(at_step))
    config = SaveConfig(every_steps=1, keep=20, patience_seconds=0.3)
    with pytest.raises(Resumable, match=r"not be written \(.*File too large.*last good one is step 3: the same"):
        engine.train(save=config)
    assert saved(engine) == [1, 2, 3]
    disk(False)
    again = make_engine(tmp_path, method=Heavy())
    assert again.train(save=config, attempt=2).finished
    assert again.method.steps_begun == list(range(3, TOTAL_STEPS))
    assert [line["step"] for line in join_parts(tmp_path, "audit")] == list(range(TOTAL_STEPS))


def test_a_whole_run_waits_for_a_disk_that_has_room_again(
    tmp_path: Path, disk: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver, "_TRY_AGAIN_SECONDS", 0.1)
    tries: list[None] = []
    save = CheckpointStore.save

    def counted(*arguments: Any, **more: Any) -> None:
        tries.append(None)
        disk(len(tries) < 4)
        save(*arguments, **more)

    monkeypatch.setattr(CheckpointStore, "save", counted)
    engine = make_engine(tmp_path, method=Heavy())
    assert engine.train(save=SaveConfig(every_steps=100)).finished
    assert len(tries) == 4
    assert saved(engine) == [TOTAL_STEPS]


def test_lines_that_a_full_disk_does_not_take_are_written_when_it_does(
    tmp_path: Path, disk: Callable[[bool], None]
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def at_step(step: int) -> None:
        if step in (2, 5):  # a few bytes of the next line fit
            size = part_path(tmp_path, "audit", 1).stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 7 if step == 2 else limit[0], limit[1]))

    engine = make_engine(tmp_path, method=Heavy(at_step))
    assert engine.train(save=SaveConfig(every_steps=100)).finished
    assert [line["step"] for line in join_parts(tmp_path, "audit")] == list(range(TOTAL_STEPS))
    assert [line["step"] for line in join_parts(tmp_path, "metrics")] == list(range(1, TOTAL_STEPS + 1))


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "_WAIT_FOR_WRITER_SECONDS", 0.0)
    save, released = CheckpointStore.save, Event()

    def slow(*arguments: Any, **more: Any) -> None:
        assert released.wait(60)
        save(*arguments, **more)

    monkeypatch.setattr(CheckpointStore, "save", slow)
    engine = make_engine(tmp_path, method=Heavy(lambda step: released.set() if step == 5 else None))
    assert engine.train(save=EVERY_STEP).finished
    left_out = [line for line in events(engine) if "still being written" in line]
    assert [line.split()[1] for line in left_out[:3]] == ["2", "3", "4"]
    assert {1, TOTAL_STEPS} <= set(saved(engine))
    assert not {2, 3, 4} & set(saved(engine))
    first = CheckpointStore(tmp_path / "checkpoints")
    calm = make_engine(tmp_path / "calm", method=Heavy())
    for batch in calm.loader.stream(0, 1):
        calm.step(batch)
    written = first.load(next(one for one in first.saved() if one.step == 1))
    assert all(torch.equal(one, calm.step.module.state_dict()[name]) for name, one in written.model.items())


def test_the_best_by_the_monitor_is_kept(tmp_path: Path) -> None:
    scores = iter([0.3, 0.5, 0.4, 0.2, 0.1, 0.5, 0.3])

    def monitor(encoder: nn.Module) -> dict[str, float]:
        return {"knn_online": next(scores)}

    engine = make_engine(tmp_path)
    engine.train(save=SaveConfig(every_steps=100, keep=1), monitor=monitor, monitor_every=1)
    assert saved(engine) == [2, TOTAL_STEPS]
    checkpoint = CheckpointStore(tmp_path / "checkpoints").newest_readable()[0]
    assert checkpoint is not None
    assert checkpoint.state["best"] == {"step": 2, "score": 0.5}


def test_the_best_that_could_not_be_written_does_not_push_out_the_one_before(
    tmp_path: Path, disk: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver, "_TRY_AGAIN_SECONDS", 0.0)
    scores = iter([0.1, 0.5, 0.4, 0.9, 0.3, 0.2, 0.1])

    def at_step(step: int) -> None:
        time.sleep(0.2)  # what is being written is there by then
        disk(step == 3)

    engine = make_engine(tmp_path, method=Heavy(at_step))
    engine.train(
        save=SaveConfig(every_steps=1, keep=1), monitor=lambda _: {"knn_online": next(scores)}, monitor_every=1
    )
    assert saved(engine) == [2, TOTAL_STEPS]
    checkpoint = CheckpointStore(tmp_path / "checkpoints").newest_readable()[0]
    assert checkpoint is not None
    assert checkpoint.state["best"] == {"step": 2, "score": 0.5}


def test_a_resumed_run_knows_the_best(tmp_path: Path) -> None:
    config = SaveConfig(every_steps=2, keep=1)
    spoiled = make_engine(tmp_path)
    spoil(spoiled, {5})
    with pytest.raises(NonFiniteLoss):
        spoiled.train(save=config, monitor=lambda _: {"knn_online": 1.0}, monitor_every=1)
    assert saved(spoiled) == [1, 4]
    again = make_engine(tmp_path)
    assert again.train(save=config, monitor=lambda _: {"knn_online": 0.9}, monitor_every=1, attempt=2).finished
    assert saved(again) == [1, TOTAL_STEPS]


def test_an_attempt_that_was_taken_over_ends(tmp_path: Path) -> None:
    def take_over(step: int) -> None:
        if step == 3:
            time.sleep(0.3)
            CheckpointStore(tmp_path / "checkpoints", attempt=7).claim()

    engine = make_engine(tmp_path, method=Heavy(take_over))
    with pytest.raises(SupersededError, match="attempt 7 has taken over the run, attempt 1 ends"):
        engine.train(save=EVERY_STEP)
    assert saved(engine) == [1, 2, 3]


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    make_engine(tmp_path).train(identity={"method": {"name": "simclr", "temperature": 0.5}, "data": {"manifest": "a"}})
    with pytest.raises(UserError, match=r"method\.temperature was 0\.5, now 0\.1; use another name or the same values"):
        make_engine(tmp_path).train(
            attempt=2, identity={"method": {"name": "simclr", "temperature": 0.1}, "data": {"manifest": "a"}}
        )


def spoil(engine: Engine, steps: set[int]) -> None:
    """Make the loss of these steps NaN, and of no other."""
    begin, good = engine.method.before_step, engine.method.centre.clone()

    def before_step(info: StepInfo) -> None:
        begin(info)
        if info.step in steps:
            good.copy_(engine.method.centre)
            engine.method.centre.fill_(torch.nan)
        elif info.step - 1 in steps:
            engine.method.centre.copy_(good)

    engine.method.before_step = before_step


def test_a_loss_that_is_not_finite_names_step_samples_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    sample = int(engine.loader.batch(4).positions[0, 0])
    spoil(engine, {4})
    with pytest.raises(NonFiniteLoss, match=rf"loss at step 4 is nan.*\[{sample},.*last good checkpoint is step 4"):
        engine.train(save=EVERY_STEP)
    assert saved(engine) == [1, 2, 3, 4]


def test_steps_that_are_not_finite_are_left_out_where_that_is_borne(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, skip_non_finite=True)
    spoil(engine, {2, 4})
    before: dict[str, torch.Tensor] = {}
    assert engine.train(save=EVERY_STEP, max_skipped=2).finished
    left_out = [line for line in events(engine) if "left out" in line]
    assert [line.split()[2] for line in left_out] == ["2", "4"]
    assert "1 more may be" in left_out[0]
    store = CheckpointStore(tmp_path / "checkpoints")
    two, three = (store.load(next(one for one in store.saved() if one.step == step)) for step in (2, 3))
    before = dict(two.model)
    assert all(torch.equal(one, before[name]) for name, one in three.model.items() if name != "centre")
    assert store.load(store.saved()[0]).state["skipped"] == [2, 4]


def test_a_step_too_many_that_is_not_finite_stops_also_after_a_restart(tmp_path: Path) -> None:
    engine = make_engine(tmp_path, skip_non_finite=True)
    spoil(engine, {2, 4})
    with pytest.raises(NonFiniteLoss, match="loss at step 4 is nan"):
        engine.train(save=EVERY_STEP, max_skipped=1)
    again = make_engine(tmp_path, skip_non_finite=True)
    spoil(again, {4})
    with pytest.raises(NonFiniteLoss, match="loss at step 4 is nan"):
        again.train(save=EVERY_STEP, max_skipped=1, attempt=2)
    more = make_engine(tmp_path, skip_non_finite=True)
    spoil(more, {4})
    assert more.train(save=EVERY_STEP, max_skipped=2, attempt=3).finished


@pytest.mark.s3
@pytest.mark.parametrize("refusal", ["full", "forbidden"])
def test_a_bucket_that_refuses_costs_no_step(
    tmp_path: Path, s3_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    monkeypatch.setattr(saver, "_TRY_AGAIN_SECONDS", 0.0)
    boto3.client("s3", **s3_store.client_arguments).create_bucket(Bucket=f"checkpoints-{refusal}")
    place = S3Location(f"checkpoints-{refusal}", "runs/first")
    calm = make_engine(tmp_path / "calm", method=Heavy())
    calm.train(save=EVERY_STEP)
    with faulty_proxy(s3_store.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)

        def at_step(step: int) -> None:
            if step in (3, 5):
                wait_for(lambda: any(one.step == 3 for one in CheckpointStore(place).saved()))
                setattr(proxy, refusal, step == 3)
            elif step == 4:
                wait_for(lambda: proxy.refused.total() > 0)

        engine = make_engine(tmp_path / "refused", method=Heavy(at_step))
        assert engine.train(save=EVERY_STEP, bucket=place).finished
        said = [line for line in events(engine) if "cannot be written" in line]
        assert len(said) == 1
        assert {"full": "InsufficientStorage", "forbidden": "AccessDenied"}[refusal] in said[0]
        steps = [one.step for one in CheckpointStore(place).saved()]
        assert steps[0] == TOTAL_STEPS
        assert 4 not in steps
        assert all(torch.equal(one, state(calm)[name]) for name, one in state(engine).items())
        # and a run that ends while the bucket refuses keeps the last good one, from which the same command goes on
        other = S3Location(place.bucket, "runs/second")
        stops = make_engine(
            tmp_path / "stops", method=Heavy(lambda step: setattr(proxy, refusal, True) if step == 4 else None)
        )
        with pytest.raises(Resumable, match=r"could not be written .*: the same command continues from there"):
            stops.train(save=SaveConfig(every_steps=3, patience_seconds=0.5), bucket=other)
        setattr(proxy, refusal, False)
        again = make_engine(tmp_path / "stops", method=Heavy())
        assert again.train(attempt=2, bucket=other).finished
        assert again.method.steps_begun[0] in (0, 3)
        assert [line["step"] for line in join_parts(tmp_path / "stops", "audit")] == list(range(TOTAL_STEPS))


def wait_for(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)
