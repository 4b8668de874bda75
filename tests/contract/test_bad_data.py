"""Unreadable samples of real shards, found by several workers, killed and resumed on others: one list, one history."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from gloo_pool import GlooPool, TaskFailed
from PIL import Image
from test_resume import CONFIG, Interrupted
from tiny_runs import GLOBAL_BATCH, NUM_LANES, SEED, TOTAL_STEPS, KeyedImages, build, tiny_run

from ssl_core.collectives import Collectives
from ssl_core.data.indexing import index_folder
from ssl_core.data.loader import LaneLoader, Schedule
from ssl_core.data.manifest import load_manifest, save_manifest
from ssl_core.data.reader import Reader
from ssl_core.lanes import Lanes
from ssl_core.train.checkpoint import CheckpointStore
from ssl_core.train.loop import LoopResult, train
from ssl_core.train.records import join_parts
from ssl_core.views.recipes import CropRecipe

pytestmark = pytest.mark.slow
SAMPLES, SHARDS = 32, 2
BAD = (5, 6, 7, 40, 63)  # neighbours: who shows the next readable one for 5 finds 6 and 7 as well


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """64 samples in two shards, five of them text."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"shard-{shard:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for position in range(shard * SAMPLES, (shard + 1) * SAMPLES):
                stream = io.BytesIO()
                Image.fromarray(KeyedImages().image(position)).save(stream, "PNG")
                data = b"no image" if position in BAD else stream.getvalue()
                info = tarfile.TarInfo(f"{position:04d}.png")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    save_manifest(index_folder(folder)[0], folder)
    return folder


def attempt(
    collectives: Collectives,
    shards: Path,
    folder: Path,
    number: int,
    max_bad: int,
    kill_in: int | None = None,
    processes: int = 0,
) -> LoopResult:
    """One attempt, as `pipelines.worker` makes it."""
    run = tiny_run("simclr")
    step, _ = build(run, collectives)
    reader = Reader(load_manifest(shards), max_bad=max_bad, verify=False)
    lanes = Lanes.cut(GLOBAL_BATCH, NUM_LANES, rank=collectives.rank, world=collectives.world)
    schedule = Schedule(shard_samples=reader.manifest.shard_samples, seed=SEED, block=20, lanes=lanes)
    loader = LaneLoader(reader, CropRecipe.of(run.views), schedule, processes=processes)
    context = Interrupted(folder=folder, attempt=number, collectives=collectives, kill_in=kill_in)
    return train(step, loader, reader.quarantine, CONFIG, context)


def listed(folder: Path) -> dict[str, str]:
    checkpoint, _ = CheckpointStore(folder / "checkpoints").newest_readable()
    assert checkpoint is not None
    return checkpoint.state["quarantine"]


@pytest.mark.parametrize("world", [1, 2])
def test_the_list_and_its_count_survive_a_kill_and_other_workers(
    pool: GlooPool, shards: Path, tmp_path: Path, world: int
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert [result.quarantined for result in pool.run(1, attempt, shards, whole, 1, 5)] == [5]
    assert list(listed(whole)) == [str(position) for position in BAD]
    assert listed(whole)["5"] == "shard-00000.tar, key 0005: not an image of a known kind"

    with pytest.raises(TaskFailed, match="Killed"):
        pool.run(world, attempt, shards, killed, 1, 5, 5)
    assert set(listed(killed)) <= set(listed(whole))
    results = pool.run(3, attempt, shards, killed, 2, 5)  # five are borne, and no one of them is counted twice
    assert [(result.finished, result.quarantined) for result in results] == [(True, 5)] * 3
    assert listed(killed) == listed(whole)

    for folder in (whole, killed):
        metrics = {line["step"]: line["quarantined"] for line in join_parts(folder, "metrics")}
        assert list(metrics) == list(range(1, TOTAL_STEPS + 1))
        assert metrics[TOTAL_STEPS] == 5
    audits = [join_parts(folder, "audit") for folder in (whole, killed)]
    for one, other in zip(*audits, strict=True):
        assert (one["step"], one["ids"], one["views"]) == (other["step"], other["ids"], other["views"])


@pytest.mark.parametrize(("world", "processes"), [(1, 0), (3, 0), (1, 2)])
def test_one_too_many_stops_after_a_saved_step_and_more_are_borne_later(
    pool: GlooPool, shards: Path, tmp_path: Path, world: int, processes: int
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    pool.run(1, attempt, shards, whole, 1, 5)
    with pytest.raises(
        TaskFailed, match=r"Resumable: more than data\.max_bad = 2 of 64 samples do not decode, such as"
    ):
        pool.run(world, attempt, shards, stopped, 1, 2, None, processes)
    saved = len(join_parts(stopped, "audit"))
    with pytest.raises(TaskFailed, match=r"Resumable: more than data\.max_bad = 2 "):  # the same command: no step more
        pool.run(2, attempt, shards, stopped, 2, 2, None, processes)
    assert len(join_parts(stopped, "audit")) == saved
    assert {result.finished for result in pool.run(2, attempt, shards, stopped, 3, 5, None, processes)} == {True}
    assert listed(stopped) == listed(whole)
    one, other = (join_parts(folder, "audit") for folder in (whole, stopped))
    assert [(line["step"], line["ids"], line["views"]) for line in one] == [
        (line["step"], line["ids"], line["views"]) for line in other
    ]
    assert np.unique([line["step"] for line in other]).tolist() == list(range(TOTAL_STEPS))
