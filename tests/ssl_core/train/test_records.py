"""Records: what counts of several attempts, and an audit line that does not depend on the number of workers."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from ssl_core.collectives import Collectives
from ssl_core.train.records import Record, audit_line, join_parts, part_path, publish_joined, read_part
from ssl_core.types import LaneBatch


def write(folder: Path, attempt: int, first_step: int, steps: Sequence[int]) -> Path:
    record = Record(folder, "audit", attempt=attempt, first_step=first_step)
    for step in steps:
        record.append({"step": step, "attempt": attempt})
    record.close()
    return part_path(folder, "audit", attempt)


def history(folder: Path) -> list[tuple[int, int]]:
    return [(line["step"], line["attempt"]) for line in join_parts(folder, "audit")]


def test_a_part_is_its_first_step_and_its_lines(tmp_path: Path) -> None:
    path = write(tmp_path, 1, 4, [4, 5])
    assert path == tmp_path / "audit" / "attempt-0001.jsonl"
    assert read_part(path) == (4, [{"step": 4, "attempt": 1}, {"step": 5, "attempt": 1}])


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    record = Record(tmp_path, "metrics", attempt=1, first_step=0)
    record.append({"step": 1})
    assert read_part(part_path(tmp_path, "metrics", 1)) == (0, [{"step": 1}])
    record.close()


def test_a_later_attempt_replaces_from_its_first_step_on(tmp_path: Path) -> None:
    write(tmp_path, 1, 0, [0, 1, 2, 3, 4])
    write(tmp_path, 2, 2, [2, 3])
    assert history(tmp_path) == [(0, 1), (1, 1), (2, 2), (3, 2)]
    write(tmp_path, 3, 4, [4, 5])
    assert history(tmp_path) == [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (5, 3)]
    write(tmp_path, 10, 0, [0])
    assert history(tmp_path) == [(0, 10)]


def test_an_attempt_that_did_nothing_yet_takes_back_what_it_will_do_again(tmp_path: Path) -> None:
    write(tmp_path, 1, 0, [0, 1, 2])
    write(tmp_path, 2, 2, [])
    assert history(tmp_path) == [(0, 1), (1, 1)]


@pytest.mark.parametrize("left", ["", "{", '{"first_st'])
def test_an_attempt_killed_before_its_first_line_takes_nothing_back(tmp_path: Path, left: str) -> None:
    write(tmp_path, 1, 0, [0, 1, 2])
    part_path(tmp_path, "audit", 2).write_text(left)
    assert history(tmp_path) == [(0, 1), (1, 1), (2, 1)]


def test_a_line_cut_anywhere_is_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, 1, 0, [0, 1, 2])
    whole = path.read_text()
    last_line = len(whole.splitlines()[-1])
    for missing in range(2, last_line + 1):
        path.write_text(whole[:-missing])
        assert history(tmp_path) == [(0, 1), (1, 1)]


def test_joined_history_is_published(tmp_path: Path) -> None:
    publish_joined(tmp_path, "audit")
    assert not (tmp_path / "audit.jsonl").exists()
    write(tmp_path, 1, 0, [0, 1])
    write(tmp_path, 2, 1, [1])
    publish_joined(tmp_path, "audit")
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert lines == join_parts(tmp_path, "audit")
    assert len(lines) == 2


class Recorded(Collectives):
    """Workers one after the other in one process: each hears what those before it said."""

    said: ClassVar[list[Any]] = []

    def gather_objects(self, value: Any) -> list[Any]:
        self.said.append(value)
        return list(self.said)


def batch_of(lanes: range, **changes: Any) -> LaneBatch:
    pixels = np.arange(4 * 2 * 3 * 5 * 5).astype(np.uint8).reshape(4, 2, 3, 5, 5, 1)
    return LaneBatch(
        step=7,
        epoch=2,
        positions=np.arange(12).reshape(4, 3)[lanes] * 11,
        draws=np.arange(12).reshape(4, 3)[lanes] * 12,
        groups={"views": pixels[lanes], "local": pixels[lanes, :1, :, :2, :2], **changes},
    )


@pytest.mark.parametrize("cuts", [(0, 1, 4), (0, 2, 4), (0, 1, 2, 4), (0, 1, 2, 3, 4)])
def test_an_audit_line_is_the_same_for_any_number_of_workers(cuts: tuple[int, ...]) -> None:
    whole = audit_line(batch_of(range(4)), 1 / 3, Collectives())
    assert whole["step"] == 7
    assert whole["epoch"] == 2
    assert float.fromhex(whole["loss"]) == 1 / 3
    assert whole["ids"] == [11 * one for one in range(12)]
    Recorded.said.clear()
    lines = [audit_line(batch_of(range(start, stop)), 1 / 3, Recorded()) for start, stop in pairwise(cuts)]
    assert lines[-1] == whole
    assert lines[0] != whole


def test_the_digest_sees_every_pixel_and_the_order_of_lanes() -> None:
    batch = batch_of(range(4))
    digests = {audit_line(batch, 0.0, Collectives())["views"]}
    for name in ("views", "local"):
        changed = {one: pixels.copy() for one, pixels in batch.groups.items()}
        changed[name][3, 0, 2, 1, 1, 0] ^= 1
        digests.add(audit_line(replace(batch, groups=changed), 0.0, Collectives())["views"])
    turned = {name: pixels[::-1] for name, pixels in batch.groups.items()}
    digests.add(audit_line(replace(batch, groups=turned), 0.0, Collectives())["views"])
    assert len(digests) == 4
