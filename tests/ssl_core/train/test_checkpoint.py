"""Checkpoints: whole or not at all, never believed where a bit is wrong, never lost to a newer one that is damaged."""

import errno
import json
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch

from cluster.object_store import ObjectStore
from ssl_core.errors import Resumable, UserError
from ssl_core.storage.files import files_at
from ssl_core.storage.s3 import Folder, S3Location
from ssl_core.train.checkpoint import Checkpoint, CheckpointStore, DamagedError, SupersededError

FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")


def example(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    columns = torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last)
    return Checkpoint(
        step=step,
        model={"a.weight": columns, "queue": torch.arange(step), "exact": torch.tensor(1 / 3, dtype=torch.float64)},
        optimizer={"a.weight/step": torch.tensor(float(step)), "a.weight/half": torch.ones(2, dtype=torch.bfloat16)},
        state={"identity": {"seed": 3, "name": "ä"}, "quarantine": {"17": "no image"}},
    )


def same(found: Checkpoint, expected: Checkpoint) -> bool:
    pairs = [(found.model, expected.model), (found.optimizer, expected.optimizer)]
    return (
        found.step == expected.step
        and dict(found.state) == {"step": expected.step, **expected.state}
        and all(one.keys() == other.keys() for one, other in pairs)
        and all(
            torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype
            for one, other in pairs
            for name in one
        )
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save(folder: Path, step: int, *, attempt: int = 1, **how: Any) -> Path:
    """The folder of what was saved."""
    CheckpointStore(folder, attempt=attempt).save(example(step), **how)
    return folder / f"step-{step:08d}.attempt-{attempt:04d}"


def saved(folder: Path) -> list[tuple[int, int]]:
    return [(one.step, one.attempt) for one in CheckpointStore(folder).saved()]


@pytest.fixture(params=["disk", pytest.param("bucket", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder of each kind."""
    if request.param == "disk":
        return tmp_path / "run" / "checkpoints"
    store: ObjectStore = request.getfixturevalue("s3_store")
    bucket = f"checkpoints-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", **store.client_arguments).create_bucket(Bucket=bucket)
    return S3Location(bucket, "runs/first")


def test_what_was_saved_is_loaded(place: Folder) -> None:
    store = CheckpointStore(place)
    assert store.newest_readable() == (None, [])
    store.claim()
    store.save(example(12))
    (one,) = store.saved()
    assert one.name == "step-00000012.attempt-0001"
    assert files_at(place).names() == ["claims/attempt-0001", *sorted(f"{one.name}/{name}" for name in FILES)]
    assert same(store.load(one), example(12))


def test_large_tensors_come_back(place: Folder) -> None:
    large = torch.arange(5_000_000, dtype=torch.float32)  # more than one part of an upload
    store = CheckpointStore(place)
    store.save(replace(example(1), model={"large": large}))
    found, complaints = store.newest_readable()
    assert found is not None
    assert complaints == []
    assert torch.equal(found.model["large"], large)


def test_same_state_same_bytes(tmp_path: Path) -> None:
    one, other = save(tmp_path / "a", 3), save(tmp_path / "b", 3)
    assert [(one / name).read_bytes() for name in FILES] == [(other / name).read_bytes() for name in FILES]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(place: Folder, keep: int) -> None:
    store = CheckpointStore(place)
    for step in (2, 4, 9, 10, 11):
        store.save(example(step), keep=keep)
    assert [one.step for one in store.saved()] == [11, 10, 9][:keep]
    assert {name.partition("/")[0] for name in files_at(place).names()} == {one.name for one in store.saved()}
    checkpoint, complaints = store.newest_readable()
    assert checkpoint is not None
    assert (checkpoint.step, complaints) == (11, [])


def test_the_best_is_kept_besides(place: Folder) -> None:
    store = CheckpointStore(place)
    for step, best in ((2, None), (4, 4), (6, 4), (8, 4), (10, 10), (12, 10), (14, 10)):
        store.save(example(step), keep=2, best=best)
    assert [one.step for one in store.saved()] == [14, 12, 10]


def test_a_later_attempt_fences_an_earlier_one(place: Folder) -> None:
    zombie, store = CheckpointStore(place, attempt=1), CheckpointStore(place, attempt=2)
    zombie.claim()
    zombie.save(example(10))
    store.claim()
    with pytest.raises(SupersededError, match="attempt 2 has taken over the run, attempt 1 ends"):
        zombie.save(example(20))
    with pytest.raises(SupersededError, match="attempt 2 has taken over"):
        zombie.claim()
    assert [(one.step, one.attempt) for one in store.saved()] == [(10, 1)]
    store.save(example(15), resumed_from=10)
    assert [(one.step, one.attempt) for one in store.saved()] == [(15, 2), (10, 1)]


def test_two_drivers_cannot_begin_the_same_attempt(place: Folder) -> None:
    CheckpointStore(place, attempt=4).claim()
    with pytest.raises(SupersededError, match=r"attempt 4 .*was begun by somebody else"):
        CheckpointStore(place, attempt=4).claim()


def test_an_attempt_that_is_killed_while_it_saves_leaves_nothing_behind(place: Folder) -> None:
    store = CheckpointStore(place)
    store.save(example(10))
    with suppress(Killed), files_at(place).writing("step-00000020.attempt-0001/model.safetensors") as path:
        path.write_bytes(b"half")
        raise Killed
    with files_at(place).writing("step-00000030.attempt-0001/model.safetensors") as path:
        path.write_bytes(b"one of three")
    assert [one.step for one in store.saved()] == [10]
    later = CheckpointStore(place, attempt=2)
    later.claim()
    (left,) = later.saved()
    assert {name.partition("/")[0] for name in files_at(place).names()} == {"claims", left.name}


class Killed(BaseException):
    """What stands here for a kill."""


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def flip_middle_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 128
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: list[Callable[[Path], None]] = [flip_last_byte, flip_middle_bit, cut, empty, Path.unlink, replace_by_folder]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_one_is_named_and_the_one_before_is_taken(
    tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    damage(newest / name)
    checkpoint, complaints = CheckpointStore(tmp_path).newest_readable()
    assert checkpoint is not None
    assert same(checkpoint, example(1))
    if name == "manifest.json" and not (newest / name).is_file():
        assert complaints == []  # as if it had never been completed
        return
    (complaint,) = complaints
    assert str(newest) in complaint
    assert "falling back to the one before" in complaint
    assert "\n" not in complaint


@pytest.mark.s3
def test_a_damaged_object_is_named_and_the_one_before_is_taken(s3_store: ObjectStore) -> None:
    client = boto3.client("s3", **s3_store.client_arguments)
    client.create_bucket(Bucket="damaged")
    store = CheckpointStore(S3Location("damaged", "run"))
    for step in (1, 2, 3):
        store.save(example(step), keep=3)
    client.put_object(Bucket="damaged", Key="run/step-00000003.attempt-0001/model.safetensors", Body=b"x")
    client.delete_object(Bucket="damaged", Key="run/step-00000002.attempt-0001/state.json")
    checkpoint, complaints = store.newest_readable()
    assert checkpoint is not None
    assert same(checkpoint, example(1))
    assert "model.safetensors differs from its checksum" in complaints[0]
    assert "there is no object s3://damaged/run/step-00000002.attempt-0001/state.json" in complaints[1]


def test_no_flipped_bit_of_the_manifest_gives_another_state(tmp_path: Path) -> None:
    path, store = save(tmp_path, 2) / "manifest.json", CheckpointStore(tmp_path)
    intact = path.read_bytes()
    for place in range(len(intact)):
        for bit in (1, 7):
            damaged = bytearray(intact)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            if damaged[11] != intact[11] and chr(damaged[11]).isdecimal():  # the format's number
                with pytest.raises(UserError, match="has format"):
                    store.load(store.saved()[0])
                continue
            with suppress(DamagedError):
                assert same(store.load(store.saved()[0]), example(2))


@pytest.mark.parametrize("content", ["[]", "3", '"x"', "null", "{}", '{"format": 2, "sha256": []}'])
def test_a_manifest_of_another_shape_is_damage(tmp_path: Path, content: str) -> None:
    (save(tmp_path, 2) / "manifest.json").write_text(content)
    with pytest.raises(DamagedError, match="cannot be read"):
        CheckpointStore(tmp_path).load(CheckpointStore(tmp_path).saved()[0])


def test_another_format_stops(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3}))
    with pytest.raises(UserError, match=f"checkpoint {path.parent} has format 3, this version reads 2"):
        CheckpointStore(tmp_path).newest_readable()


def test_checkpoints_of_the_first_format_are_not_overlooked(tmp_path: Path) -> None:
    (tmp_path / "step-00000003").mkdir()
    (tmp_path / "step-00000003" / "manifest.json").touch()
    with pytest.raises(UserError, match="have format 1, this version reads 2: use a new name"):
        CheckpointStore(tmp_path).newest_readable()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_by_itself(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        cut(save(tmp_path, step, keep=3) / "model.safetensors")
    with pytest.raises(UserError, match=r"none of the 3 checkpoints at .* the newest: checkpoint .*step-00000003"):
        CheckpointStore(tmp_path).newest_readable()


def test_a_disk_that_does_not_answer_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    def broken(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("ssl_core.train.checkpoint.sha256_file", broken)
    with pytest.raises(Resumable, match=r"step-00000002.* cannot be read now .*Input/output error"):
        CheckpointStore(tmp_path).newest_readable()


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newer_one_does_not_push_out_what_is_saved(tmp_path: Path, keep: int) -> None:
    save(tmp_path, 10, keep=2)
    for step in (20, 30):
        cut(save(tmp_path, step, keep=3) / "model.safetensors")
    for step in (15, 18):
        save(tmp_path, step, attempt=2, keep=keep, resumed_from=10)
        checkpoint, _ = CheckpointStore(tmp_path).newest_readable()
        assert checkpoint is not None
        assert checkpoint.step == step
    assert saved(tmp_path) == [(30, 1), (20, 1), (18, 2), (15, 2)][: 2 + keep]
    save(tmp_path, 30, attempt=2, keep=keep, resumed_from=10)
    checkpoint, complaints = CheckpointStore(tmp_path).newest_readable()
    assert checkpoint is not None
    assert (checkpoint.step, complaints) == (30, [])
    assert saved(tmp_path) == [(30, 2), (18, 2)][:keep]


@pytest.mark.parametrize("call", ["link", "rename", "fsync", "unlink"])
@pytest.mark.parametrize("nth", range(1, 9))
def test_a_kill_at_any_moment_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    save(tmp_path, 1, keep=1)
    real: Callable[..., Any] = getattr(os, call)
    calls: list[None] = []

    def killing(*arguments: Any, **more: Any) -> Any:
        calls.append(None)
        if len(calls) == nth:
            raise Killed
        return real(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, killing)
        with suppress(Killed):
            save(tmp_path, 2, keep=1)
    store = CheckpointStore(tmp_path, attempt=2)
    checkpoint, complaints = store.newest_readable()
    assert checkpoint is not None
    assert complaints == []
    assert same(checkpoint, example(checkpoint.step))
    store.claim()
    store.save(example(3), keep=1, resumed_from=checkpoint.step)
    assert names(tmp_path) == ["claims", "step-00000003.attempt-0002"]
