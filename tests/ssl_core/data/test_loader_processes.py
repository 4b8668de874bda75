"""Loader processes: the same batches, the same errors, and nothing of them is left, however anybody ends."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from troubled_images import SAMPLES, TROUBLES, NumberRecipe, TroubledImages

from ssl_core.data.lane_views import parts_of
from ssl_core.data.loader import LaneLoader, Schedule
from ssl_core.data.manifest import Manifest
from ssl_core.data.reader import Reader
from ssl_core.errors import Resumable, UserError, WorkerLost
from ssl_core.lanes import Lanes
from ssl_core.types import LaneBatch
from ssl_core.views import recipe

pytestmark = pytest.mark.slow
MakeSet = Callable[..., Manifest]
BAD: tuple[int, ...] = (2, 3, 17)


def children(pid: int) -> list[int]:
    """The loader processes that a process started and that are not gone; other tests of this session have others."""
    found = [int(one) for file in Path(f"/proc/{pid}/task").glob("*/children") for one in file.read_text().split()]
    return [one for one in found if b"loader_process" in command_line(one)]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(holds: Callable[[], bool], *, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Generator[None]:
    """No process, thread, descriptor or shared memory is left by any test here."""

    def left() -> tuple[Any, ...]:
        gc.collect()
        threads = sorted(thread.name for thread in threading.enumerate())
        shared = [line for line in Path("/proc/self/maps").read_text().splitlines() if "lane-batches" in line]
        return children(os.getpid()), threads, os.listdir("/proc/self/fd"), shared

    before = left()
    yield
    assert left() == before


def loader(images: Any = None, *, lanes: int = 2, made_by: Any = None, **options: Any) -> LaneLoader:
    images = images or TroubledImages()
    schedule = Schedule(
        shard_samples=np.asarray([SAMPLES // 2, SAMPLES // 2]), seed=3, block=16, lanes=Lanes.cut(16, lanes)
    )
    return LaneLoader(images, made_by or NumberRecipe(), schedule, **options)


def same(one: LaneBatch, other: LaneBatch) -> bool:
    return (
        (one.step, one.epoch) == (other.step, other.epoch)
        and np.array_equal(one.positions, other.positions)
        and np.array_equal(one.draws, other.draws)
        and one.groups.keys() == other.groups.keys()
        and all(np.array_equal(one.groups[name], other.groups[name]) for name in one.groups)
    )


@pytest.mark.parametrize(("processes", "threads", "lanes"), [(1, 1, 2), (2, 1, 4), (3, 1, 2), (2, 2, 1)])
def test_batches_and_quarantine_are_those_of_threads(
    make_set: MakeSet, processes: int, threads: int, lanes: int
) -> None:
    manifest = make_set([SAMPLES // 2, SAMPLES // 2], bad=BAD)
    made: list[tuple[list[LaneBatch], dict[int, str]]] = []
    for count in (0, processes):
        reader = Reader(manifest, max_bad=5)
        views = recipe("multicrop", image_size=28, local_size=12)
        batches = list(loader(reader, lanes=lanes, made_by=views, processes=count, threads=threads).stream(2, 10))
        made.append((batches, reader.quarantine.snapshot()))
        assert reader.quarantine.num_found == len(BAD)
    (expected, listed), (found, heard) = made
    assert [batch.epoch for batch in expected] == [0, 0, 1, 1, 1, 1, 2, 2]
    assert all(same(one, other) for one, other in zip(expected, found, strict=True))
    assert heard == listed
    assert sorted(heard) == list(BAD)


def test_a_list_from_a_checkpoint_is_known_to_the_processes(make_set: MakeSet) -> None:
    manifest = make_set([SAMPLES // 2, SAMPLES // 2], bad=BAD)
    views = recipe("simclr", image_size=16)
    expected = list(loader(Reader(manifest), made_by=views).stream(4, 8))
    reader = Reader(manifest)
    before = dict.fromkeys((*BAD, 20), "known before")  # 20 is readable, but the run has it that it is not
    reader.quarantine.restore(before)
    found = list(loader(reader, made_by=views, processes=2).stream(4, 8))
    assert reader.quarantine.num_found == 0
    assert reader.quarantine.snapshot() == before
    differ = [not same(one, other) for one, other in zip(expected, found, strict=True)]
    assert differ == [20 in batch.positions for batch in expected]


@pytest.mark.parametrize("trouble", list(TROUBLES))
def test_an_error_comes_with_its_type_and_words(trouble: str) -> None:
    error = TROUBLES[trouble]
    at = int(loader().batch(2).positions[1, 3])
    stream = loader(TroubledImages(trouble, at=at), processes=2).stream(0, 8)
    assert [next(stream).step, next(stream).step] == [0, 1]
    with pytest.raises((UserError, Resumable, OSError, RuntimeError)) as caught:
        next(stream)
    if trouble == "particular":
        assert (type(caught.value), str(caught.value)) == (RuntimeError, "Particular: it is broken because of rust")
    else:
        assert (type(caught.value), str(caught.value)) == (type(error), str(error))
        assert "in image" in caught.value.__notes__[0]


@pytest.mark.parametrize("trouble", ["kill", "wait"])
def test_a_killed_process_is_an_error_in_words(trouble: str) -> None:
    at = int(loader().batch(1).positions[1, 0])
    stream = loader(TroubledImages(trouble, at=at), processes=2).stream(0, 8)
    next(stream)
    if trouble == "wait":  # the second process hangs, and somebody ends it
        os.kill(children(os.getpid())[1], signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(WorkerLost, match=r"a loader process \(pid \d+\) was killed \(signal 9; the machine may have"):
        list(stream)
    assert time.monotonic() - start < 2


def test_a_process_that_was_killed_between_steps_is_missed_at_the_next() -> None:
    stream = loader(processes=1, ahead=0).stream(0, 8)
    next(stream)
    (pid,) = children(os.getpid())
    os.kill(pid, signal.SIGKILL)
    until(lambda: "loader-listener" not in [thread.name for thread in threading.enumerate()])
    with pytest.raises(WorkerLost, match=rf"pid {pid}"):
        next(stream)


def test_a_process_that_cannot_start_is_an_error_in_words() -> None:
    with pytest.raises(WorkerLost, match=r"ended with exit status 3; it said why on standard error"):
        loader(TroubledImages("unreadable"), processes=1).batch(0)


def test_a_stream_that_is_left_ends_its_processes_at_once() -> None:
    stream = loader(TroubledImages(seconds=0.02), processes=2, ahead=20).stream(0, 100)
    next(stream)
    pids = children(os.getpid())
    assert len(pids) == 2
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 1
    assert not any(alive(pid) for pid in pids)


def test_a_consumer_that_fails_leaves_nothing() -> None:
    def consume() -> None:
        for batch in loader(processes=2).stream(0, 20):
            if batch.step == 3:
                raise KeyError(batch.step)

    with pytest.raises(KeyError):
        consume()


def test_what_stops_the_trainer_in_good_order_does_not_stop_its_loader() -> None:
    stream = loader(processes=2).stream(0, 12)
    found = [next(stream)]
    for pid in children(os.getpid()):
        assert os.getpgid(pid) == pid  # a terminal's Ctrl-C does not reach it
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
    found += stream
    assert all(same(one, other) for one, other in zip(found, loader().stream(0, 12), strict=True))


PROGRAM = """
    import os, sys
    from troubled_images import *
    from test_loader_processes import children, loader
    print("begun", flush=True)
    stream = loader(TroubledImages(seconds=0.01), processes=2).stream(0, 10000)
    next(stream)
    print(*children(os.getpid()), flush=True)
    for batch in stream:
        pass
"""


@pytest.mark.parametrize("how", ["file", "-c"])
def test_processes_end_with_a_killed_trainer_whose_main_module_they_do_not_run(tmp_path: Path, how: str) -> None:
    program = textwrap.dedent(PROGRAM)
    (tmp_path / "program.py").write_text(program)
    words = ["-c", program] if how == "-c" else [str(tmp_path / "program.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True, env=environment) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "begun\n"
        pids = [int(word) for word in trainer.stdout.readline().split()]
        assert len(pids) == 2
        trainer.kill()
        until(lambda: not any(alive(pid) for pid in pids), seconds=2)
        assert trainer.stdout.read() == ""


def test_what_a_consumer_holds_is_never_overwritten() -> None:
    expected = list(loader().stream(0, 12))
    held: list[tuple[int, Any]] = []
    for batch in loader(processes=2).stream(0, 12):
        pixels = batch.groups["views"]
        part = (pixels[0], torch.from_numpy(pixels[:, 1:])[:, 0], pixels[1:].transpose(0, 3, 4, 1, 2, 5)[0, 5:].T)
        held.append((batch.step, part[batch.step % 3]))
        del pixels, batch, part
    for step, part in held:
        pixels = expected[step].groups["views"]
        wanted = (pixels[0], pixels[:, 1], pixels[1:].transpose(0, 3, 4, 1, 2, 5)[0, 5:].T)[step % 3]
        assert np.array_equal(np.asarray(part), wanted), step


@pytest.mark.parametrize(
    ("lanes", "size", "at_least", "parts"), [(4, 6, 1, 4), (4, 6, 4, 4), (2, 6, 3, 4), (1, 7, 3, 3), (2, 3, 9, 6)]
)
def test_parts_are_the_batch(lanes: int, size: int, at_least: int, parts: int) -> None:
    positions = np.arange(lanes * size).reshape(lanes, size)
    cut = list(parts_of(5, positions, positions * 2, at_least=at_least))
    assert np.concatenate([part.positions for part in cut]).tolist() == positions.ravel().tolist()
    assert np.concatenate([part.draws for part in cut]).tolist() == (positions * 2).ravel().tolist()
    for part in cut:
        first = part.lane * size + part.first
        assert part.positions.tolist() == list(range(first, first + len(part.positions)))
    assert len(cut) == parts
