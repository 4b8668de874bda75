"""How many workers an attempt gets, when it makes room for another one, and what follows a failure."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

import pipelines.attempts
import pipelines.cluster_room
from pipelines.attempt_policy import Activity, FailureBudget, WorkerSign
from pipelines.attempts import Surroundings, wait_for_room, why_again
from pipelines.cluster_room import Resource, workers_need
from pipelines.run_folder import RunFolder, read_record
from pipelines.stop_signals import StopSignals
from ssl_core.errors import Resumable, WorkerLost
from ssl_core.lanes import Lanes


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nothing to ask but the test; the numbers of workers that nodes were asked for."""
    asked: list[int] = []

    def capacity(need: Resource) -> int:
        return 5

    def ask(need: Resource, workers: int) -> None:
        asked.append(workers)

    monkeypatch.setattr(pipelines.attempts, "capacity", capacity)
    monkeypatch.setattr(pipelines.attempts, "ask_for_nodes", ask)
    monkeypatch.setattr(pipelines.attempts, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(pipelines.attempts, "_SETTLE_SECONDS", 0.05)
    return asked


def waited(*rooms: int, settle: bool = False, patience: float = 10.0) -> int:
    """Room as it is found, look by look; the last number stays."""
    left = list(rooms)

    def room(need: Resource) -> int:
        return left.pop(0) if len(left) > 1 else left[0]

    return wait_for_room(
        "CPU", least=2, most=4, stop=StopSignals(), settle=settle, room=room, patience_seconds=patience
    )


def test_a_first_attempt_takes_the_room_there_is() -> None:
    assert [waited(room) for room in (2, 3, 4, 9)] == [2, 3, 4, 4]


def test_after_an_attempt_its_room_is_waited_for_a_little() -> None:
    assert waited(2, 3, 4, settle=True) == 4
    assert waited(0, 3, settle=True) == 3


def test_less_than_the_least_is_waited_for(no_cluster: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    assert waited(1, 1, 3) == 3
    assert no_cluster == [8, 8, 0]  # an autoscaler is asked for four besides those that run, and asked no more
    assert capsys.readouterr().out == (
        "the cluster has room for 1 worker(s) that need a CPU each, of 5 in all: waiting up to 10 s for 2\n"
    )


def test_a_cluster_that_stays_too_small_is_said(no_cluster: list[int]) -> None:
    with pytest.raises(Resumable, match=r"room for 1 worker.*train.workers asks for at least 2: the same command"):
        waited(1, patience=0.05)
    assert no_cluster[0] == 8
    assert no_cluster[-1] == 0


class Autoscaler:
    """As Ray's: one wish, the last that was said, for the cluster as a whole; met as a whole, or not at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, held: int, largest: int, overwritten: int = 0) -> None:
        self.total, self._held, self._largest = held, held, largest
        self._wish, self._overwritten = 0, overwritten
        monkeypatch.setattr(pipelines.attempts, "capacity", self.capacity)
        monkeypatch.setattr(pipelines.attempts, "ask_for_nodes", self.ask)

    def ask(self, need: Resource, workers: int) -> None:
        self._wish = workers

    def capacity(self, need: Resource) -> int:
        return self.total

    def room(self, need: Resource) -> int:
        if self._wish and self._overwritten:
            self._wish, self._overwritten = 0, self._overwritten - 1  # another driver has its room, and says so
        if self._wish <= self._largest:
            self.total = max(self.total, self._wish)
        return self.total - self._held


@pytest.mark.parametrize(
    ("held", "largest", "overwritten", "workers"),
    [
        (0, 32, 0, 9),
        (0, 4, 0, 2),  # there cannot be the most
        (8, 32, 0, 9),  # another run has what there is
        (8, 12, 0, 2),
        (0, 32, 3, 9),
    ],
)
def test_an_autoscaler_brings_what_it_can(
    monkeypatch: pytest.MonkeyPatch, held: int, largest: int, overwritten: int, workers: int
) -> None:
    monkeypatch.setattr(pipelines.attempts, "_HOPE_SECONDS", 0.1)
    autoscaler = Autoscaler(monkeypatch, held=held, largest=largest, overwritten=overwritten)
    found = wait_for_room(
        "GPU", least=2, most=9, stop=StopSignals(), settle=False, room=autoscaler.room, patience_seconds=5
    )
    assert found == workers


def sign(node: str = "n", *, step: int = 7, doing: Activity = "stepping") -> WorkerSign:
    return WorkerSign(
        rank=0, node=node, pid=1, step=step, doing=doing, step_seconds=None, silent_seconds=0, still_seconds=0
    )


def looked(monkeypatch: pytest.MonkeyPatch, *rooms: int, most: int = 8, doing: Activity = "stepping") -> list[Any]:
    """What an attempt with 8 lanes on 3 workers is told, look by look."""
    left = list(rooms)

    def room(need: Resource) -> int:
        return left.pop(0)

    monkeypatch.setattr(pipelines.attempts, "room", room)
    monkeypatch.setattr(pipelines.attempts, "draining_nodes", frozenset[str])
    monkeypatch.setattr(pipelines.attempts, "_MOVE_SECONDS", 0.0)
    plan: Any = SimpleNamespace(lanes=Lanes(count=8, size=1, world=3))
    surroundings = Surroundings(plan, "CPU", most)
    return [surroundings([sign(doing=doing)]) for _ in rooms]


def test_room_that_lasts_and_makes_it_faster_is_a_reason_to_move(monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked(monkeypatch, 1, 0, 1, 1) == [None, None, None, "there is room for 4 instead of 3"]
    assert looked(monkeypatch, 9, 9)[1] == "there is room for 8 instead of 3"
    assert looked(monkeypatch, 9, 9, most=3) == [None, None]
    assert looked(monkeypatch, 9, 9, doing="starting") == [None, None]


def test_a_node_that_is_taken_away_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    leaving = frozenset({"abcdefghijk", "elsewhere"})
    monkeypatch.setattr(pipelines.attempts, "draining_nodes", lambda: leaving)
    plan: Any = SimpleNamespace(lanes=Lanes(count=8, size=1, world=2))
    assert Surroundings(plan, "CPU", 2)([sign("n"), sign("abcdefghijk")]) == "node abcdefgh is being taken away"
    assert Surroundings(plan, "CPU", 2)([sign("n")]) is None


def failed(run: RunFolder, budget: FailureBudget, stop: StopSignals | None = None) -> str:
    return why_again(WorkerLost("worker 1 went away (x)"), run, 5, stop or StopSignals(), [sign()], budget)


def test_a_failure_is_noted_said_and_followed_by_an_attempt_until_the_budget_is_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailureBudget, "back_off_seconds", 0.0)
    run = RunFolder.open(str(tmp_path), "first", identity={}, config={})
    budget = FailureBudget(1)
    assert failed(run, budget) == "worker 1 went away (x)"
    assert capsys.readouterr().out == (
        "worker 1 went away (x): trying again in 0 s (failure 1 of 1 without a newer checkpoint)\n"
    )
    with pytest.raises(
        Resumable, match=r"2 attempts failed with no newer checkpoint than after step 5 .*max_failures=1"
    ):
        failed(run, budget)
    assert read_record(run.path).failures == [{"step": 7, "reason": "worker 1 went away (x)"}] * 2


def test_who_was_asked_to_stop_tries_nothing_again(tmp_path: Path) -> None:
    stop = StopSignals()
    with stop.noted():
        stop.handle(15, None)
    run = RunFolder.open(str(tmp_path), "first", identity={}, config={})
    with pytest.raises(Resumable, match="stopped; step 5 is saved"):
        failed(run, FailureBudget(3), stop)
    assert run.record.failures == []


@pytest.mark.parametrize(
    ("gpus", "device", "need"),
    [(4, None, "GPU"), (1, None, "CPU"), (0, "gpu", "GPU"), (4, "cpu", "CPU")],
)
def test_a_run_takes_gpus_where_there_are_enough_or_what_it_is_told(
    monkeypatch: pytest.MonkeyPatch, gpus: int, device: Literal["cpu", "gpu"] | None, need: Resource
) -> None:
    def capacity(resource: Resource) -> int:
        return gpus if resource == "GPU" else 16

    monkeypatch.setattr(pipelines.cluster_room, "capacity", capacity)
    assert workers_need(2, device) == need
