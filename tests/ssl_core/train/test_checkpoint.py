"""Checkpoints: whole or not at all, never believed where a bit is wrong, never lost to a newer one that is damaged."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_core.errors import UserError
from ssl_core.train.checkpoint import (
    Checkpoint,
    all_checkpoints,
    load_checkpoint,
    newest_readable,
    save_checkpoint,
)

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


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "run" / "checkpoints", example(12))
    assert path.name == "step-00000012"
    assert names(path) == sorted(FILES)
    assert same(load_checkpoint(path), example(12))


def test_same_state_same_bytes(tmp_path: Path) -> None:
    one, other = save_checkpoint(tmp_path / "a", example(3)), save_checkpoint(tmp_path / "b", example(3))
    assert [(one / name).read_bytes() for name in FILES] == [(other / name).read_bytes() for name in FILES]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (2, 4, 9, 10, 11):
        save_checkpoint(tmp_path, example(step), keep=keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (9, 10, 11)][-keep:]
    checkpoint, complaints = newest_readable(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, complaints) == (11, [])


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_readable(tmp_path / "nothing") == (None, [])


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
    save_checkpoint(tmp_path, example(1))
    newest = save_checkpoint(tmp_path, example(2))
    damage(newest / name)
    with pytest.raises(UserError, match=str(newest)):
        load_checkpoint(newest)
    checkpoint, complaints = newest_readable(tmp_path)
    assert checkpoint is not None
    assert same(checkpoint, example(1))
    (complaint,) = complaints
    assert str(newest) in complaint
    assert "falling back to the one before" in complaint
    assert "\n" not in complaint


def test_no_flipped_bit_of_the_manifest_gives_another_state(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, example(2)) / "manifest.json"
    intact = path.read_bytes()
    for place in range(len(intact)):
        for bit in (1, 7):
            damaged = bytearray(intact)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            checkpoint, complaints = newest_readable(tmp_path)
            assert len(complaints) == (checkpoint is None)
            assert checkpoint is None or same(checkpoint, example(2))


@pytest.mark.parametrize("content", ["[]", "3", '"x"', "null", "{}", '{"format": 1, "sha256": []}'])
def test_a_manifest_of_another_shape_is_damage(tmp_path: Path, content: str) -> None:
    path = save_checkpoint(tmp_path, example(2))
    (path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(path)


def test_another_format_is_said(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, example(2)) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    assert newest_readable(tmp_path)[1][0].startswith(f"checkpoint {path.parent} has format 2, this version reads 1")


def test_every_damaged_one_is_named(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        cut(save_checkpoint(tmp_path, example(step), keep=3) / "model.safetensors")
    checkpoint, complaints = newest_readable(tmp_path)
    assert checkpoint is None
    assert [f"step-0000000{step}" in line for step, line in zip((3, 2, 1), complaints, strict=True)] == [True] * 3


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newer_one_does_not_push_out_what_is_saved(tmp_path: Path, keep: int) -> None:
    save_checkpoint(tmp_path, example(10), keep=2)
    for step in (20, 30):
        cut(save_checkpoint(tmp_path, example(step), keep=3) / "model.safetensors")
    save_checkpoint(tmp_path, example(15), keep=keep)
    checkpoint, _ = newest_readable(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 15
    save_checkpoint(tmp_path, example(30), keep=keep)
    checkpoint, complaints = newest_readable(tmp_path)
    assert checkpoint is not None
    assert (checkpoint.step, complaints) == (30, [])


class Killed(BaseException):
    """What stands here for a kill."""


@pytest.mark.parametrize("call", ["rename", "fsync"])
@pytest.mark.parametrize("nth", range(1, 9))
def test_a_kill_at_any_moment_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    save_checkpoint(tmp_path, example(1), keep=1)
    real: Callable[..., Any] = getattr(os, call)
    calls: list[None] = []

    def killing(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == nth:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, killing)
        with suppress(Killed):
            save_checkpoint(tmp_path, example(2), keep=1)
    checkpoint, complaints = newest_readable(tmp_path)
    assert checkpoint is not None
    assert complaints == []
    assert same(checkpoint, example(checkpoint.step))
    assert checkpoint.step == 1 or not [name for name in names(tmp_path) if name.startswith(".partial")]
    save_checkpoint(tmp_path, example(2), keep=1)
    assert names(tmp_path) == ["step-00000002"]


def test_one_that_was_removed_in_part_is_cleaned_up(tmp_path: Path) -> None:
    shutil.copytree(save_checkpoint(tmp_path, example(5)), tmp_path / "step-00000003")
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    save_checkpoint(tmp_path, example(6), keep=2)
    assert [path.name for path in all_checkpoints(tmp_path)] == ["step-00000006", "step-00000005"]
