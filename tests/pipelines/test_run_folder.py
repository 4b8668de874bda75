"""A run's folder: one identity for life, a record that survives, and one driver at a time."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.run_folder import RUN_FILE, RunFolder, find_run, read_record
from ssl_core.errors import UserError

IDENTITY: dict[str, Any] = {
    "seed": 3,
    "method": {"name": "simclr", "temperature": 0.1, "projector": (16, 8)},
    "train": {"steps": 10, "global_batch": 64},
}


def opened(
    storage: Path, name: str = "first", *, identity: dict[str, Any] | None = None, workers: int = 1
) -> RunFolder:
    config = {"train": {"workers": workers}}
    return RunFolder.open(str(storage), name, identity=identity or IDENTITY, config=config)


def changed(**parts: Any) -> dict[str, Any]:
    return {
        name: {**one, **parts[name]} if isinstance(parts.get(name), dict) else parts.get(name, one)
        for name, one in IDENTITY.items()
    }


def test_a_new_run_writes_nothing_until_it_is_updated(tmp_path: Path) -> None:
    run = opened(tmp_path / "runs")
    assert (run.record.state, run.record.attempts, run.finished) == ("new", 0, False)
    assert not (tmp_path / "runs").exists()
    run.update(state="running", attempts=1)
    assert read_record(run.path) == run.record
    assert run.path == (tmp_path / "runs" / "first")


def test_the_same_run_is_continued(tmp_path: Path) -> None:
    opened(tmp_path).update(state="interrupted", attempts=2, mlflow_run="abc")
    again = opened(tmp_path, workers=7)
    assert (again.record.state, again.record.attempts, again.record.mlflow_run) == ("interrupted", 2, "abc")
    assert again.record.config == {"train": {"workers": 7}}
    assert read_record(again.path).config == {"train": {"workers": 1}}


@pytest.mark.parametrize(
    ("identity", "says"),
    [
        (changed(seed=4), "seed was 3, now 4"),
        (changed(method={"temperature": 0.2}), "method.temperature was 0.1, now 0.2"),
        (changed(method={"projector": (16, 4)}), r"method.projector was \[16, 8\], now \[16, 4\]"),
        (changed(train={"new": True}), "train.new was None, now True"),
        ({"seed": 3}, "method was {.*}, now None; train was"),
        (changed(seed=4, train={"steps": 20}), "seed was 3, now 4; train.steps was 10, now 20"),
    ],
    ids=["value", "nested", "list", "more", "less", "two"],
)
def test_another_identity_is_refused_with_the_difference(tmp_path: Path, identity: dict[str, Any], says: str) -> None:
    opened(tmp_path).update(state="interrupted")
    with pytest.raises(UserError, match=f"run first in .* {says}") as refused:
        opened(tmp_path, identity=identity)
    assert "\n" not in str(refused.value)
    assert "use another name" in str(refused.value)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "/etc"])
def test_a_name_that_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="name="):
        opened(tmp_path, name)


def test_a_run_is_finished_when_its_summary_is_there(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.update(state="trained")
    assert not opened(tmp_path).finished
    run.write_summary({"steps": 10, "probe": None})
    again = opened(tmp_path)
    assert again.finished
    assert again.summary() == {"state": "finished", "steps": 10, "probe": None}
    (run.path / "summary.json").unlink()
    assert not opened(tmp_path).finished


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    busy = pytest.raises(UserError, match="run first is in progress in another process")
    with first.locked(), busy, second.locked():
        pass
    with second.locked():
        pass


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"{}", "another format version"),
        (b'{"format": 99}', "another format version"),
        (b"[]", "not the record of a run"),
        (b'{"format": 1, "colour": 3}', "not the record of a run"),
    ],
)
def test_a_damaged_record_is_said_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    opened(tmp_path).update(state="running")
    (tmp_path / "first" / RUN_FILE).write_bytes(content)
    with pytest.raises(UserError, match=says) as refused:
        opened(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run in"):
        read_record(tmp_path)


def test_a_run_is_found_by_name_or_by_folder(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.update(state="running")
    assert find_run("first", str(tmp_path)) == run.path
    assert find_run(str(run.path), "elsewhere") == run.path
    with pytest.raises(UserError, match="there is no run second"):
        find_run("second", str(tmp_path))


def test_the_record_is_json_that_people_can_read(tmp_path: Path) -> None:
    run = opened(tmp_path)
    run.update(state="running")
    content = json.loads((run.path / RUN_FILE).read_text())
    assert content["format"] == 1
    assert content["identity"]["method"]["projector"] == [16, 8]
