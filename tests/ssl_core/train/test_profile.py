"""The profile of a run: a trace and a table of where a step's time goes."""

import json
from pathlib import Path

import pytest
from tiny_engine import make_engine

from ssl_core.train.profile import PARTS


def test_a_run_writes_its_trace_and_its_table(tmp_path: Path) -> None:
    make_engine(tmp_path, total_steps=12).train(profile=True, total_steps=12)
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    parts = [part for part in PARTS if part != "colours"]  # the loader gave them
    assert {f"step: {part}" for part in parts} <= names
    _, _, *rows = [
        line.strip("| ").split(" | ") for line in (tmp_path / "profile" / "steps.md").read_text().splitlines()
    ]
    assert [row[0] for row in rows] == [*parts, "rest", "whole"]
    milliseconds = [float(row[1]) for row in rows]
    assert sum(milliseconds[:-1]) == pytest.approx(milliseconds[-1], abs=0.05 * len(rows))  # each is rounded
    assert min(milliseconds) >= 0


def test_nothing_is_written_unasked_or_by_a_run_that_is_too_short(tmp_path: Path) -> None:
    make_engine(tmp_path / "long", total_steps=12).train(total_steps=12)
    make_engine(tmp_path / "short", total_steps=4).train(profile=True, total_steps=4)
    assert not list(tmp_path.glob("*/profile"))
