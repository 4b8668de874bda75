"""A pack that is killed, at any moment, and given again: the same bytes, and no finished shard is made twice."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ssl_core import rng
from ssl_core.data import placing
from ssl_core.data.recode import Recoding
from ssl_core.data.sources import Source, SourceImage, open_source
from ssl_core.data.tar import index_shard
from ssl_core.data.writer import pack
from ssl_core.errors import UserError

MakeImage = Callable[..., bytes]
IMAGES, SHARD = 60, 5


@pytest.fixture
def images(tmp_path: Path, make_image: MakeImage) -> Path:
    """60 images in three classes; two do not decode."""
    folder = tmp_path / "images"
    for number in range(IMAGES):
        path = folder / "abc"[number % 3] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image" if number in (7, 40) else make_image(number))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def slowly(image: SourceImage, log: Path, waits_at: int) -> bytes:
    with log.open("a") as lines:
        lines.write(f"{image.origin}\n")
    time.sleep(0.01 if len(read_so_far(log)) < waits_at else 60)
    return image.read()


def logged_source(folder: str, log: Path, *, waits_at: int = IMAGES + 1) -> Source:
    source = open_source(folder)
    return replace(source, images=[replace(one, read=partial(slowly, one, log, waits_at)) for one in source.images])


def pack_slowly(folder: str, output: str, log: str, waits_at: int) -> None:
    """The process that is killed; it waits for that from so many images on."""
    source = logged_source(folder, Path(log), waits_at=waits_at)
    pack(source, Path(output), shard_samples=SHARD, val_fraction=0.2, workers=2)


def read_so_far(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def keys_of_finished_shards(output: Path) -> set[str]:
    """Of all shards with a record; the records are JSON."""
    keys: set[str] = set()
    for record in output.glob(".packing/*/*/*.json"):
        json.loads(record.read_text())
        path = record.with_suffix(".tar")
        keys |= set(index_shard(path.read_bytes(), path.name).keys)
    return keys


@pytest.mark.chaos
def test_a_killed_process_is_continued_after_its_last_finished_shard(images: Path, tmp_path: Path) -> None:
    pack(open_source(str(images)), tmp_path / "calm", shard_samples=SHARD, val_fraction=0.2)
    out, log = tmp_path / "out", tmp_path / "log"
    moments = [1 + int(share * (IMAGES - 2)) for share in sorted(rng.uniform(rng.key(0, "test.kill"), 3).tolist())]
    kept: list[int] = []
    for reads in moments:
        before = keys_of_finished_shards(out)
        log.unlink(missing_ok=True)
        context = multiprocessing.get_context("spawn")
        waits_at = max(1, reads - len(before))
        process = context.Process(target=pack_slowly, args=(str(images), str(out), str(log), waits_at))
        process.start()
        end = time.monotonic() + 60
        while len(read_so_far(log)) < waits_at:
            assert process.is_alive(), (reads, len(before))
            assert time.monotonic() < end, (reads, len(before))
            time.sleep(0.001)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
        assert not list(out.rglob("manifest.json"))
        assert not before & {str(Path(origin).relative_to(images).with_suffix("")) for origin in read_so_far(log)}
        kept.append(len(keys_of_finished_shards(out)))
    assert kept == sorted(kept)
    assert kept[-1] > 0, moments
    log.unlink(missing_ok=True)
    finished = keys_of_finished_shards(out)
    pack(logged_source(str(images), log), out, shard_samples=SHARD, val_fraction=0.2)
    again = {str(Path(origin).relative_to(images).with_suffix("")) for origin in read_so_far(log)}
    assert not finished & again
    assert len(again) <= IMAGES - len(finished)
    assert files(out) == files(tmp_path / "calm")


def pack_and_die(folder: str, output: str, step: str, time_number: int) -> None:
    """The process that kills itself where it would take a step of putting in place for the n-th time."""
    original, count = getattr(placing, step), 0

    def dying(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == time_number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    setattr(placing, step, dying)
    pack(open_source(folder), Path(output), shard_samples=SHARD, val_fraction=0.2)


@pytest.mark.chaos
def test_a_kill_while_shards_and_manifests_are_put_in_place_changes_nothing(images: Path, tmp_path: Path) -> None:
    pack(open_source(str(images)), tmp_path / "calm", shard_samples=SHARD, val_fraction=0.2)
    calm, out = files(tmp_path / "calm"), tmp_path / "out"
    for step, number in (("sync_folder", 1), ("save_manifest", 1), ("save_manifest", 2)):
        arguments = (str(images), str(out), step, number)
        process = multiprocessing.get_context("spawn").Process(target=pack_and_die, args=arguments)
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert (out / "train/shard-00000.tar").is_file()
        assert not (out / "val/manifest.json").exists()
        if step == "sync_folder":
            with pytest.raises(UserError, match="the beginning of a data set of other images or options"):
                pack(open_source(str(images)), out, shard_samples=SHARD, val_fraction=0.2, seed=1)
    packed = pack(open_source(str(images)), out, shard_samples=SHARD, val_fraction=0.2)
    assert packed.num_kept == sum(name.endswith(".tar") for name in calm)
    assert files(out) == calm


def broken_off(images: Path, out: Path) -> None:
    """Some shards are finished, then a file cannot be read."""

    def fail() -> bytes:
        raise OSError(5, "Input/output error")

    source = open_source(str(images))
    last = replace(source.images[-1], read=fail)
    with pytest.raises(UserError, match=r"cannot be read \(Input/output error\): no data set was made"):
        pack(replace(source, images=[*source.images[:-1], last]), out, shard_samples=1, workers=1)
    assert list((out / ".packing").glob("*/*.json"))


@pytest.mark.parametrize("options", [{"seed": 1}, {"shard_samples": 2}, {"recoding": Recoding(resize=4)}])
def test_what_belongs_to_other_options_is_not_mixed_in(options: dict[str, Any], images: Path, tmp_path: Path) -> None:
    options = {"shard_samples": 1} | options
    broken_off(images, tmp_path / "out")
    packed = pack(open_source(str(images)), tmp_path / "out", **options)
    assert packed.num_kept == 0
    pack(open_source(str(images)), tmp_path / "calm", **options)
    assert files(tmp_path / "out") == files(tmp_path / "calm")


def test_what_belongs_to_other_images_is_not_mixed_in(images: Path, tmp_path: Path, make_image: MakeImage) -> None:
    broken_off(images, tmp_path / "out")
    assert pack(open_source(str(images)), tmp_path / "same", shard_samples=1).num_kept == 0
    for path in images.rglob("*.jpg"):
        path.write_bytes(make_image(int(path.stem) + 100))
    assert pack(open_source(str(images)), tmp_path / "out", shard_samples=1).num_kept == 0
    pack(open_source(str(images)), tmp_path / "calm", shard_samples=1)
    assert files(tmp_path / "out") == files(tmp_path / "calm")


def test_the_same_command_keeps_what_was_finished(images: Path, tmp_path: Path) -> None:
    broken_off(images, tmp_path / "out")
    finished = len(list((tmp_path / "out/.packing").glob("*/*.json")))
    assert pack(open_source(str(images)), tmp_path / "out", shard_samples=1).num_kept == finished
    pack(open_source(str(images)), tmp_path / "calm", shard_samples=1)
    assert files(tmp_path / "out") == files(tmp_path / "calm")


def test_a_finished_shard_that_is_gone_is_made_again(images: Path, tmp_path: Path) -> None:
    broken_off(images, tmp_path / "out")
    next((tmp_path / "out/.packing").glob("*/shard-00002.tar")).unlink()
    assert pack(open_source(str(images)), tmp_path / "out", shard_samples=1).num_kept == 2
    pack(open_source(str(images)), tmp_path / "calm", shard_samples=1)
    assert files(tmp_path / "out") == files(tmp_path / "calm")
