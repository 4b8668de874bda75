"""Images are looked at by processes as by threads: the same bytes, the same errors, and no process is left."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_core import rng
from ssl_core.data.looking_ahead import processes_for
from ssl_core.data.recode import Recoding
from ssl_core.data.sources import Source, SourceImage, open_source
from ssl_core.data.writer import pack
from ssl_core.errors import Resumable, UserError

MakeImage = Callable[..., bytes]
IMAGES = 60


@pytest.fixture
def images(tmp_path: Path, make_image: MakeImage) -> Path:
    """60 images of several kinds in three classes; two do not decode."""
    folder = tmp_path / "images"
    for number in range(IMAGES):
        path = folder / "abc"[number % 3] / f"{number:02d}.{('jpg', 'png', 'webp', 'gif')[number % 4]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_image(number))
        if number % 4:
            with Image.open(path) as image:
                image.convert("P" if number % 8 < 4 else "RGB").save(path)
        if number in (8, 40):
            path.write_bytes(b"no image")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def packing(pid: int) -> list[int]:
    """The packing processes that a process started and that are not gone."""
    found = [int(one) for file in Path(f"/proc/{pid}/task").glob("*/children") for one in file.read_text().split()]
    return [one for one in found if b"data.looking" in Path(f"/proc/{one}/cmdline").read_bytes()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(autouse=True)
def nothing_is_left() -> Generator[None]:
    """No process and no descriptor is left by any test here."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert packing(os.getpid()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def with_read(source: Source, number: int, read: Callable[[SourceImage], bytes]) -> Source:
    """The source with another way to read one image."""
    images = list(source.images)
    images[number] = replace(images[number], read=partial(read, images[number]))
    return replace(source, images=images)


def kills_itself(image: SourceImage) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return image.read()


def fails(image: SourceImage) -> bytes:
    raise OSError(5, "Input/output error")


def takes_long(image: SourceImage) -> bytes:
    time.sleep(600)
    return image.read()


@pytest.mark.slow
@pytest.mark.parametrize("recoding", [{}, {"resize": 16}])
def test_processes_make_the_bytes_of_threads(images: Path, tmp_path: Path, recoding: Any) -> None:
    expected = pack(open_source(str(images)), tmp_path / "0", shard_samples=7, recoding=Recoding(**recoding))
    assert len(expected.skipped) == 2
    for workers, processes in ((1, 1), (5, 2)):
        out, done = tmp_path / f"{workers}-{processes}", list[tuple[int, int]]()
        pack(
            open_source(str(images)),
            out,
            shard_samples=7,
            recoding=Recoding(**recoding),
            workers=workers,
            processes=processes,
            done=lambda count, of, done=done: done.append((count, of)),
        )
        assert files(out) == files(tmp_path / "0")
        assert done == [(count, IMAGES) for count in range(IMAGES + 1)]


@pytest.mark.slow
def test_a_killed_process_is_said_in_words_and_the_same_command_continues(images: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shard_samples": 5, "processes": 2}
    source, out = open_source(str(images)), tmp_path / "out"
    last = int(rng.key(0, "pack.shuffle", np.arange(IMAGES)).argmax())
    with pytest.raises(
        Resumable, match=r"a packing process \(pid \d+\) was killed \(signal 9; .*\): the same command continues"
    ):
        pack(with_read(source, last, kills_itself), out, **options)
    assert pack(source, out, **options).num_kept > 0
    pack(source, tmp_path / "calm", shard_samples=5)
    assert files(out) == files(tmp_path / "calm")


@pytest.mark.slow
def test_a_file_that_cannot_be_read_is_said_in_words(images: Path, tmp_path: Path) -> None:
    source = with_read(open_source(str(images)), 3, fails)
    with pytest.raises(UserError, match=rf"^{source.images[3].origin} cannot be read \(Input/output error\): no data"):
        pack(source, tmp_path / "out", processes=2)
    assert not (tmp_path / "out").exists()


PROGRAM = """
    import signal
    import sys
    from pathlib import Path
    from pipelines.console import run_command
    from ssl_core.data.sources import open_source
    from ssl_core.data.writer import pack
    from test_looking_ahead import takes_long, with_read

    def main(words):
        source = with_read(open_source(sys.argv[1]), 0, takes_long)
        pack(source, Path(sys.argv[2]), shard_samples=1, processes=2, done=lambda *_: print("on", flush=True))

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored
        run_command("pack", "", main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_command_at_once(images: Path, tmp_path: Path, how: signal.Signals) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    words = [sys.executable, str(tmp_path / "program.py"), str(images), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen(words, **pipes) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        for _ in range(3):
            assert command.stdout.readline() == "on\n"
        pids = packing(command.pid)
        assert len(pids) == 2
        command.send_signal(how)
        try:
            command.wait(3)
        finally:
            command.kill()  # or leaving `with` waits for it
        end = time.monotonic() + 3
        while any(alive(pid) for pid in pids):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert command.stderr.read() == ("pack: interrupted\n" if how == signal.SIGINT else "")
    assert command.returncode == (130 if how == signal.SIGINT else -how)


def test_processes_are_for_many_images_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert processes_for(16, num_images=100_000) == 16
    assert processes_for(32, num_images=100_000) == 16
    assert processes_for(8, num_images=100_000) == 8
    assert processes_for(16, num_images=100) == 0
    assert processes_for(2, num_images=100_000) == 0
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert processes_for(32, num_images=100_000) == 0
