"""The cache of a bucket's objects: whole, verified, bounded, fetched once however many ask, unharmed by kills."""

import errno
import fcntl
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from ssl_core.errors import Resumable, UserError
from ssl_core.storage.cache import CacheConfig, DifferentBytes, ObjectCache

SIZE = 1000


@pytest.fixture(autouse=True)
def stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_PIPELINES_CACHE", str(tmp_path / "stamps"))


def content(number: int) -> bytes:
    return bytes([number]) * SIZE


def name(number: int) -> str:
    return hashlib.sha256(content(number)).hexdigest()


def cache(folder: Path, *, objects: int = 10) -> ObjectCache:
    return ObjectCache(CacheConfig(folder=str(folder), max_bytes=objects * SIZE))


def write(path: Path, data: bytes) -> str:
    """As a download does."""
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def get(one: ObjectCache, number: int, fetched: list[int] | None = None) -> Path:
    def fetch(path: Path) -> str:
        if fetched is not None:
            fetched.append(number)
        return write(path, content(number))

    return one.get(name(number), size=SIZE, fetch=fetch)


def objects(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if len(path.name) == 64}


def test_an_object_is_fetched_once(tmp_path: Path) -> None:
    fetched: list[int] = []
    for _ in range(3):
        assert get(cache(tmp_path / "c"), 1, fetched).read_bytes() == content(1)
    assert fetched == [1]


def test_threads_that_ask_together_fetch_once(tmp_path: Path) -> None:
    one, fetched = cache(tmp_path / "c"), list[int]()
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(get, [one] * 32, [1] * 32, [fetched] * 32))
    assert fetched == [1]
    assert {path.read_bytes() for path in paths} == {content(1)}


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    one = cache(tmp_path / "c", objects=3)
    for number in (1, 2, 3, 1, 4):
        get(one, number)
        time.sleep(0.01)  # the clock of file times ticks
    assert objects(tmp_path / "c") == {name(3), name(1), name(4)}


def test_a_damaged_object_is_fetched_again(tmp_path: Path) -> None:
    one, fetched = cache(tmp_path / "c"), list[int]()
    get(one, 1, fetched).write_bytes(content(2))
    assert get(one, 1, fetched).read_bytes() == content(1)
    assert fetched == [1, 1]


def test_other_bytes_are_not_kept(tmp_path: Path) -> None:
    one, calls = cache(tmp_path / "c"), list[Path]()

    def wrong(path: Path) -> str:
        calls.append(path)
        return write(path, content(2))

    with pytest.raises(DifferentBytes):
        one.get(name(1), size=SIZE, fetch=wrong)
    assert len(calls) == 4
    assert objects(tmp_path / "c") == set()
    assert not list((tmp_path / "c").glob("*.partial"))


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken(path: Path) -> str:
        path.write_bytes(b"half")
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        cache(tmp_path / "c").get(name(1), size=SIZE, fetch=broken)
    assert objects(tmp_path / "c") == set()
    assert not list((tmp_path / "c").glob("*.partial"))


def test_what_makes_room_takes_its_lock_along(tmp_path: Path) -> None:
    one = cache(tmp_path / "c", objects=2)
    for number in range(20):
        get(one, number)
    assert len(list((tmp_path / "c").glob("*.lock"))) == 2


def test_who_waited_for_a_lock_that_was_removed_takes_the_one_that_others_see(tmp_path: Path) -> None:
    one, seen = cache(tmp_path / "c"), list[bool]()
    lock = tmp_path / "c" / f"{name(1)}.lock"

    def fetch(path: Path) -> str:
        seen.append(lock.exists())
        return write(path, content(1))

    def times_open() -> int:
        return sum(os.readlink(file) == str(lock) for file in Path("/proc/self/fd").iterdir() if file.is_symlink())

    with ThreadPoolExecutor(1) as pool:
        with lock.open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            waiting = pool.submit(one.get, name(1), size=SIZE, fetch=fetch)
            _until(lambda: times_open() == 2)
            lock.unlink()  # as who makes room does, the lock in hand
        waiting.result(30)
    assert seen == [True]


def test_an_object_that_is_asked_for_while_others_make_room_is_never_half_there(tmp_path: Path) -> None:
    one = cache(tmp_path / "c", objects=2)

    def ask(number: int) -> bool:
        try:
            return get(one, number).read_bytes() == content(number)
        except FileNotFoundError:
            return True  # made room for another one before it was opened: who asks must ask again

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, [number % 6 for number in range(300)]))
    get(one, 7)  # eight at a time were more than fit
    assert len(objects(tmp_path / "c")) <= 2
    assert not list((tmp_path / "c").glob("*.partial"))


def test_an_object_that_becomes_whole_while_room_is_made_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cache(tmp_path / "c", objects=2)
    for number in (1, 2):
        get(one, number)
    scandir = os.scandir

    def locks_alone(folder: Path) -> list[os.DirEntry[str]]:
        """What it may give of files that get another name meanwhile: neither of the two."""
        return [entry for entry in scandir(folder) if entry.name.endswith(".lock")]

    monkeypatch.setattr(os, "scandir", locks_alone)
    get(one, 3)
    assert len(objects(tmp_path / "c")) == 2


def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path: Path) -> None:
    def full(path: Path) -> str:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(Resumable, match=r"No space left on device\): free some space"):
        cache(tmp_path / "c").get(name(1), size=SIZE, fetch=full)
    assert not list((tmp_path / "c").glob("*.partial"))


def test_what_can_never_fit_is_refused_with_the_number(tmp_path: Path) -> None:
    one = ObjectCache(CacheConfig(folder=str(tmp_path / "c"), max_bytes=SIZE - 1))
    with pytest.raises(UserError, match=r"1,000 bytes does not fit into the cache of 999.*data\.cache_gb"):
        get(one, 1)


def _ask(folder: str, number: int, log: str, pause: float) -> None:
    def fetch(path: Path) -> str:
        with open(log, "a") as lines:
            lines.write(f"{number}\n")
        path.write_bytes(content(number)[: SIZE // 2])
        time.sleep(pause)
        return write(path, content(number))

    path = cache(Path(folder), objects=3).get(name(number), size=SIZE, fetch=fetch)
    assert path.stat().st_size == SIZE


def processes(*arguments: tuple[str, int, str, float]) -> list[SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_ask, args=one) for one in arguments]
    for process in started:
        process.start()
    return started


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_processes_that_ask_together_fetch_once(tmp_path: Path) -> None:
    folder, log = tmp_path / "c", tmp_path / "log"
    started = processes(*[(str(folder), 1, str(log), 0.2)] * 4)
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    assert log.read_text() == "1\n"


@pytest.mark.slow
def test_a_kill_in_mid_fetch_holds_nobody_up_and_leaves_no_half_file(tmp_path: Path) -> None:
    folder, log = tmp_path / "c", tmp_path / "log"
    (killed,) = processes((str(folder), 1, str(log), 60.0))
    _until(lambda: log.exists() and bool(log.read_text()))
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    killed.join(30)
    assert list(folder.glob("*.partial"))
    one = cache(folder, objects=3)
    for number in (2, 3, 4):  # as many as fit: what the dead process had is not counted
        get(one, number)
    assert objects(folder) == {name(2), name(3), name(4)}
    assert not list(folder.glob("*.partial"))
    assert get(one, 1).read_bytes() == content(1)
