"""What the loop decides at a step's end: whether to save, to log, to stop, and what unreadable samples do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_engine import NUM_SAMPLES, TOTAL_STEPS, Linear, Noise, make_engine
from torch import nn

from ssl_core.data.quarantine import Quarantine
from ssl_core.errors import Resumable
from ssl_core.methods.base import StepInfo
from ssl_core.train import loop, saver
from ssl_core.train.checkpoint import CheckpointStore
from ssl_core.train.context import STOP_FILE
from ssl_core.train.loop import NonFiniteLoss
from ssl_core.train.records import join_parts
from ssl_core.train.saver import SaveConfig


def saved(folder: Path) -> list[int]:
    return sorted(one.step for one in CheckpointStore(folder / "checkpoints").saved())


class Clock:
    """`time.monotonic` that moves ten seconds at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


class AtOnce:
    """A thread that has done its work when it is started."""

    def __init__(self, *, target: Callable[[], None], **_: Any) -> None:
        self.start = target

    def is_alive(self) -> bool:
        return False

    def join(self, seconds: float) -> None:
        pass


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        (SaveConfig(keep=10, every_steps=3), [3, 6, 7]),
        (SaveConfig(keep=10, every_steps=100), [7]),
        (SaveConfig(keep=10, every_seconds=3600.0), [7]),
    ],
    ids=["every three", "never but at the end", "an hour"],
)
def test_checkpoints_are_due(tmp_path: Path, config: SaveConfig, steps: list[int]) -> None:
    assert make_engine(tmp_path).train(save=config).finished
    assert saved(tmp_path) == steps


def test_checkpoints_are_due_by_the_clock_and_at_the_end_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.time, "monotonic", Clock())
    monkeypatch.setattr(saver, "Thread", AtOnce)
    engine = make_engine(tmp_path)
    engine.train(save=SaveConfig(keep=10, every_seconds=1e9))
    assert saved(tmp_path) == [3, 6, 7]
    assert engine.schedule.steps_per_epoch == 3
    other = make_engine(tmp_path / "other")
    other.train(save=SaveConfig(keep=10, every_seconds=15.0))
    assert saved(other.folder) == [2, 4, 6, 7]  # said with one step, heard and done when the next is under way


def test_a_step_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    begin = engine.method.before_step

    def spoil(info: StepInfo) -> None:
        begin(info)
        if info.step == 3:
            engine.method.centre.fill_(torch.nan)

    engine.method.before_step = spoil
    with pytest.raises(NonFiniteLoss, match="loss at step 3 is nan"):
        engine.train(save=SaveConfig(keep=10, every_steps=2))
    assert saved(tmp_path) == [2]
    assert [line["step"] for line in join_parts(tmp_path, "audit")] == [0, 1, 2]


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 3, 6, 7]), (50, [1, 7])])
def test_metrics_are_logged_now_and_then_and_at_both_ends(tmp_path: Path, every: int, steps: list[int]) -> None:
    engine = make_engine(tmp_path)
    engine.train(log_every=every, audit=False)
    lines = join_parts(tmp_path, "metrics")
    assert [line["step"] for line in lines] == steps
    assert lines[-1]["epoch"] == pytest.approx(TOTAL_STEPS / 3)
    assert {"loss", "learning_rate", "gradient_norm", "images_per_second", "data_wait", "time"} < lines[0].keys()
    assert lines[0]["learning_rate"] == engine.step.rate(0)
    assert not (tmp_path / "audit").exists()


def test_a_monitor_sees_the_encoder_every_so_many_steps_and_its_numbers_are_logged(tmp_path: Path) -> None:
    engine, seen = make_engine(tmp_path), list[nn.Module]()

    def monitor(encoder: nn.Module) -> dict[str, float]:
        seen.append(encoder)
        return {"looks": float(len(seen))}

    engine.train(monitor=monitor, monitor_every=3, log_every=100)
    assert [one is engine.step.encoder for one in seen] == [True, True, True]
    lines = join_parts(tmp_path, "metrics")
    assert [(line["step"], line.get("looks")) for line in lines] == [(1, None), (3, 1.0), (6, 2.0), (7, 3.0)]


def test_of_a_run_that_stops_the_last_step_is_logged_and_not_the_one_before(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)

    def ask(encoder: nn.Module) -> dict[str, float]:
        (tmp_path / STOP_FILE).touch()
        return {"looks": 1.0}

    result = engine.train(monitor=ask, monitor_every=3, log_every=100, save=SaveConfig(every_steps=100))
    assert (result.finished, result.steps) == (False, 5)
    assert [line["step"] for line in join_parts(tmp_path, "metrics")] == [1, 3, 5]


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    make_engine(tmp_path).train()
    before = CheckpointStore(tmp_path / "checkpoints").newest_readable()[0]
    engine = make_engine(tmp_path)
    result = engine.train(attempt=2)
    assert (result.finished, result.steps) == (True, TOTAL_STEPS)
    assert engine.method.steps_begun == []
    assert before is not None
    assert [line["step"] for line in join_parts(tmp_path, "audit")] == list(range(TOTAL_STEPS))
    assert [line["step"] for line in join_parts(tmp_path, "metrics")] == list(range(1, TOTAL_STEPS + 1))


class Quarantining(Noise):
    """Lists some positions as unreadable when they are read, as the reader does."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.bad = bad
        self.quarantine: Quarantine | None = None

    def image(self, position: int) -> Any:
        if position in self.bad and self.quarantine is not None:
            self.quarantine.add(position, "no image")
        return super().image(position)


def test_unreadable_samples_are_kept_in_the_checkpoint_and_known_after_it(tmp_path: Path) -> None:
    images = Quarantining({3, 20})
    engine = make_engine(tmp_path, images=images, max_bad=5)
    images.quarantine = engine.quarantine
    result = engine.train()
    assert (result.finished, result.quarantined) == (True, 2)
    checkpoint = CheckpointStore(tmp_path / "checkpoints").newest_readable()[0]
    assert checkpoint is not None
    assert checkpoint.state["quarantine"] == {"3": "no image", "20": "no image"}
    resumed = make_engine(tmp_path, max_bad=5)
    resumed.train(attempt=2)
    assert resumed.quarantine.snapshot() == {3: "no image", 20: "no image"}
    assert resumed.quarantine.num_found == 0


def test_unreadable_samples_are_counted_in_the_metrics_and_said_in_the_events(tmp_path: Path) -> None:
    images = Quarantining({3, 20})
    engine = make_engine(tmp_path, images=images, max_bad=5)
    images.quarantine = engine.quarantine
    engine.train()
    counts = [line["quarantined"] for line in join_parts(tmp_path, "metrics")]
    assert counts == sorted(counts)
    assert counts[-1] == 2
    said = "".join(path.read_text() for path in sorted((tmp_path / "events").iterdir()))
    assert said.count("quarantined, as it does not decode: the sample at position ") in (1, 2)
    assert "(no image)" in said


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    images = Quarantining({3, 20})
    engine = make_engine(tmp_path, images=images, max_bad=5)
    images.quarantine = engine.quarantine
    (tmp_path / STOP_FILE).touch()
    assert not engine.train(log_every=1).finished
    (tmp_path / STOP_FILE).unlink()
    before = join_parts(tmp_path, "metrics")[-1]["quarantined"]
    images = Quarantining({3, 20})
    resumed = make_engine(tmp_path, images=images, max_bad=5)
    images.quarantine = resumed.quarantine
    assert resumed.train(attempt=2).finished
    counts = [line["quarantined"] for line in join_parts(tmp_path, "metrics")]
    assert counts[0] <= before <= counts[-1] == 2
    assert counts == sorted(counts)


def test_a_run_that_was_stopped_by_unreadable_samples_makes_no_step_until_more_are_borne(tmp_path: Path) -> None:
    images = Quarantining(set(range(NUM_SAMPLES)))
    engine = make_engine(tmp_path, images=images, max_bad=4)
    images.quarantine = engine.quarantine
    with pytest.raises(Resumable):
        engine.train()
    again = make_engine(tmp_path, max_bad=4)
    with pytest.raises(Resumable, match=r"more than data\.max_bad = 4 .*such as position"):
        again.train(attempt=2)
    assert again.method.steps_begun == []


def test_too_many_unreadable_samples_stop_after_a_saved_step(tmp_path: Path) -> None:
    images = Quarantining(set(range(NUM_SAMPLES)))
    engine = make_engine(tmp_path, images=images, max_bad=4)
    images.quarantine = engine.quarantine
    with pytest.raises(Resumable, match=r"more than data\.max_bad = 4"):
        engine.train()
    (step,) = saved(tmp_path)
    assert engine.method.steps_begun == list(range(step))
    images = Quarantining(set())
    more = make_engine(tmp_path, images=images, max_bad=NUM_SAMPLES)
    assert more.train(attempt=2).finished
    assert more.method.steps_begun == list(range(step, TOTAL_STEPS))


def test_a_failure_of_the_images_is_the_failure_of_the_run(tmp_path: Path) -> None:
    engine = make_engine(tmp_path)
    position = int(engine.loader.batch(4).positions[0, 0])
    broken = make_engine(tmp_path, images=Noise({position: OSError("the disk is on fire")}))
    with pytest.raises(OSError, match="the disk is on fire"):
        broken.train()
    assert [line["step"] for line in join_parts(tmp_path, "audit")] == broken.method.steps_begun


def test_figures_of_an_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop.time, "monotonic", Clock())
    result = make_engine(tmp_path).train(audit=False, log_every=100, save=SaveConfig(every_steps=100))
    assert result.seconds > 0
    assert 0 < result.images_per_second < 1
    assert result.quarantined == 0


def test_the_last_rate_is_of_several_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Slow(Linear):
        def before_step(self, info: StepInfo) -> None:
            nonlocal now
            now += 10
            super().before_step(info)

    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    make_engine(tmp_path, method=Slow()).train(log_every=TOTAL_STEPS - 1, save=SaveConfig(every_steps=100))
    lines = join_parts(tmp_path, "metrics")
    assert [line["step"] for line in lines] == [1, TOTAL_STEPS - 1, TOTAL_STEPS]
    assert all(0 < line["images_per_second"] <= 1 for line in lines)  # eight images take ten seconds
