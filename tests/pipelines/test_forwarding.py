"""The tail reads each effective line once; the forwarder loses and doubles nothing while its server comes and goes."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipelines.forwarding import Forwarder, MetricLine, MetricsTail, Refused


def write(folder: Path, attempt: int, steps: Sequence[int], *, loss: float = 0.5) -> Path:
    """Append lines to a part; a new part gets its head."""
    folder.mkdir(exist_ok=True)
    part = folder / f"attempt-{attempt:04d}.jsonl"
    head = "" if part.exists() else json.dumps({"first_step": 0}) + "\n"
    lines = [json.dumps({"step": step, "time": 1000.5 + step, "loss": loss, "note": "x"}) + "\n" for step in steps]
    with part.open("a") as file:
        file.write(head + "".join(lines))
    return part


def drain(tail: MetricsTail) -> list[int]:
    steps: list[int] = []
    while lines := tail.read():
        steps += [line.step for line in lines]
    return steps


class Server:
    """A destination in memory that can be away, lose an answer, or refuse."""

    def __init__(self) -> None:
        self.lines: list[MetricLine] = []
        self.away = threading.Event()
        self.lose_next_answer = False
        self.refuses = False
        self.tries = 0

    def last_step(self) -> int:
        self._arrive()
        return max((line.step for line in self.lines), default=-1)

    def send(self, lines: Sequence[MetricLine]) -> None:
        self._arrive()
        if self.refuses:
            raise Refused("no such run")
        self.lines += lines
        if self.lose_next_answer:
            self.lose_next_answer = False
            raise ConnectionError("answer lost")

    def _arrive(self) -> None:
        self.tries += 1
        if self.away.is_set():
            raise ConnectionError("connection refused")

    def steps(self) -> list[int]:
        return [line.step for line in self.lines]


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    pause = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    pytest.fail("it never happened")


def forwarder(folder: Path, server: Server, said: list[str]) -> Forwarder:
    made = Forwarder(MetricsTail(folder), server, say=said.append, poll_seconds=0.02)
    made.start()
    return made


def test_a_line_is_numbers_at_a_step_with_the_workers_time(tmp_path: Path) -> None:
    write(tmp_path / "metrics", 1, [3])
    assert MetricsTail(tmp_path / "metrics").read() == [MetricLine(step=3, time_ms=1003500, values={"loss": 0.5})]


def test_the_tail_follows_growing_parts_and_leaves_cut_lines(tmp_path: Path) -> None:
    tail = MetricsTail(tmp_path / "metrics")
    assert tail.read() == []  # not even a folder yet
    part = write(tmp_path / "metrics", 1, [1, 2])
    assert drain(tail) == [1, 2]
    with part.open("a") as file:
        file.write('{"step": 3, "time": 1.0, "lo')
    assert drain(tail) == []
    with part.open("a") as file:
        file.write('ss": 1.0}\n')
    assert drain(tail) == [3]


def test_what_a_later_attempt_did_again_replaces_what_was(tmp_path: Path) -> None:
    write(tmp_path / "metrics", 1, [1, 10, 20, 30, 40], loss=1.0)
    with (tmp_path / "metrics" / "attempt-0001.jsonl").open("a") as file:
        file.write('{"step": 50, "ti')  # the kill
    write(tmp_path / "metrics", 2, [21, 30], loss=2.0)
    write(tmp_path / "metrics", 3, [31, 40, 50], loss=3.0)
    tail = MetricsTail(tmp_path / "metrics")
    found = [(line.step, line.values["loss"]) for line in [*tail.read(4), *tail.read(), *tail.read(), *tail.read()]]
    assert found == [(1, 1.0), (10, 1.0), (20, 1.0), (21, 2.0), (30, 2.0), (31, 3.0), (40, 3.0), (50, 3.0)]


def test_a_batch_holds_whole_lines_within_the_limit(tmp_path: Path) -> None:
    write(tmp_path / "metrics", 1, range(10))
    tail = MetricsTail(tmp_path / "metrics")
    assert [len(tail.read(max_values=5)) for _ in range(6)] == [2, 2, 2, 2, 2, 0]
    write(tmp_path / "metrics", 1, [10])
    assert len(tail.read(max_values=1)) == 1  # a line over the limit is for the destination to refuse


def test_everything_arrives_once_and_the_last_call_comes_last(tmp_path: Path) -> None:
    server, said, calls = Server(), list[str](), list[object]()
    write(tmp_path / "metrics", 1, range(1, 1200))
    going = forwarder(tmp_path / "metrics", server, said)
    going.submit(lambda: calls.append("tags"))
    write(tmp_path / "metrics", 1, range(1200, 1300))
    assert going.finish(lambda: calls.append(len(server.lines)), wait_seconds=5)
    assert server.steps() == list(range(1, 1300))
    assert calls == ["tags", 1299]
    assert said == []


def test_a_flush_waits_for_what_was_there(tmp_path: Path) -> None:
    server, said, calls = Server(), list[str](), list[str]()
    write(tmp_path / "metrics", 1, range(1, 700))
    going = forwarder(tmp_path / "metrics", server, said)
    going.submit(lambda: calls.append("tags"))
    assert going.flush(wait_seconds=5)
    assert (server.steps(), calls) == (list(range(1, 700)), ["tags"])
    server.away.set()
    write(tmp_path / "metrics", 1, [700])
    assert not going.flush(wait_seconds=0.1)
    going.finish(lambda: None, wait_seconds=0)


def test_an_outage_is_said_once_and_made_up_for(tmp_path: Path) -> None:
    server, said, calls = Server(), list[str](), list[str]()
    write(tmp_path / "metrics", 1, [1, 2])
    going = forwarder(tmp_path / "metrics", server, said)
    wait_until(lambda: server.steps() == [1, 2])
    server.away.set()
    write(tmp_path / "metrics", 1, [3, 4])
    wait_until(lambda: len(said) == 1)
    tries = server.tries
    wait_until(lambda: server.tries > tries)
    server.away.clear()
    assert going.finish(lambda: calls.append("done"), wait_seconds=5)
    assert server.steps() == [1, 2, 3, 4]
    assert calls == ["done"]
    assert len(said) == 2
    assert "connection refused" in said[0]
    assert "back" in said[1]


def test_a_batch_whose_answer_was_lost_is_not_doubled(tmp_path: Path) -> None:
    server, said = Server(), list[str]()
    server.lose_next_answer = True
    write(tmp_path / "metrics", 1, [1, 2, 3])
    assert forwarder(tmp_path / "metrics", server, said).finish(lambda: None, wait_seconds=5)
    assert server.steps() == [1, 2, 3]


def test_a_second_command_sends_only_what_is_missing(tmp_path: Path) -> None:
    server, said = Server(), list[str]()
    server.away.set()
    write(tmp_path / "metrics", 1, [1, 2, 3])
    assert not forwarder(tmp_path / "metrics", server, said).finish(lambda: None, wait_seconds=0.2)
    server.away.clear()
    server.lines = [MetricLine(step=1, time_ms=0, values={})]
    write(tmp_path / "metrics", 2, [3, 4])
    assert forwarder(tmp_path / "metrics", server, said).finish(lambda: None, wait_seconds=5)
    assert server.steps() == [1, 2, 3, 4]


def test_after_giving_up_nothing_more_is_sent(tmp_path: Path) -> None:
    server, said = Server(), list[str]()
    server.away.set()
    write(tmp_path / "metrics", 1, [1])
    assert not forwarder(tmp_path / "metrics", server, said).finish(lambda: None, wait_seconds=0.1)
    server.away.clear()
    threading.Event().wait(0.7)  # longer than its next try
    assert server.steps() == []


def test_a_refusal_is_said_and_not_tried_again(tmp_path: Path) -> None:
    server, said, calls = Server(), list[str](), list[str]()

    def refused() -> None:
        raise Refused("tag too long")

    server.refuses = True
    write(tmp_path / "metrics", 1, [1])
    going = forwarder(tmp_path / "metrics", server, said)
    going.submit(refused)
    assert not going.finish(lambda: calls.append("done"), wait_seconds=5)
    assert calls == ["done"]
    assert sorted("tag too long" in text for text in said) == [False, True]
    assert sorted("no such run" in text for text in said) == [False, True]
