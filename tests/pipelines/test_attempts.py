"""How many workers an attempt gets: as many as there is room for; less than the least is waited for, then said."""

import pytest

import pipelines.attempts
from pipelines.attempts import wait_for_room
from pipelines.cluster_room import Resource
from pipelines.stop_signals import StopSignals
from ssl_core.errors import Resumable


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
    assert no_cluster == [4, 0]  # an autoscaler is asked, and asked no more
    assert capsys.readouterr().out == (
        "the cluster has room for 1 worker(s) that need a CPU each, of 5 in all: waiting up to 10 s for 2\n"
    )


def test_a_cluster_that_stays_too_small_is_said(no_cluster: list[int]) -> None:
    with pytest.raises(Resumable, match=r"room for 1 worker.*train.workers asks for at least 2: the same command"):
        waited(1, patience=0.05)
    assert no_cluster == [4, 0]
