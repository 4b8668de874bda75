"""A run on several data sets: planned, named and told apart; its steps show each set as often as its weight says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import pack, probe
from pipelines.config import compose, typed
from pipelines.plan import (
    Plan,
    check_inputs,
    loader_processes,
    make_plan,
    probe_data,
    probe_sets,
    threads_per_worker,
    with_absolute_paths,
)
from pipelines.pretrain import start_line
from pipelines.pretrain_config import DataConfig
from pipelines.run_folder import RunFolder
from pipelines.worker import run_worker
from pipelines.worker_process import Job
from ssl_core.errors import UserError
from ssl_core.train.context import InProcessContext
from ssl_core.train.records import join_parts

SETTING = [
    *("method=mae", "model=vit_micro", "model.image_size=16", "model.in_chans=1", "model.arguments.patch_size=8"),
    *("train.global_batch=32", "data.lanes=2", "data.block=60", "train.workers=1", "train.threads=1"),
    *("train.audit=true", "probe.every=null"),
]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders of small grey images: `a` with 90 and `b` with 40 of them, both labelled alike, and `c` without."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("sets")
    for name, count, labels in (("a", 90, "xy"), ("b", 40, "xy"), ("d", 40, "yz"), ("c", 20, "")):
        for number in range(count):
            inner = folder / "images" / name / (labels[number % 2] if labels else ".")
            inner.mkdir(parents=True, exist_ok=True)
            pixels = np.full((16, 16), (number * 2 + ord(name)) % 256, np.uint8)
            pixels[number % 16] = number
            Image.fromarray(pixels).save(inner / f"{number}.png")
        pack.main([f"source={folder}/images/{name}", f"output={folder}/{name}", "shard_samples=12"])
    return folder


def values_of(sets: Path, *words: str) -> dict[str, Any]:
    return with_absolute_paths(compose("pretrain", [*SETTING, *(word.replace("<>", str(sets)) for word in words)]))


def planned(sets: Path, *words: str) -> Plan:
    return make_plan(values_of(sets, *words))


def test_several_sets_are_one_line_of_positions(sets: Path) -> None:
    plan = planned(sets, "data.train=[<>/a,<>/b]", "data.weights=[0.5,2]", "data.val=<>/b")
    check_inputs(plan)
    assert plan.schedule.steps_per_epoch == (45 + 80) // 32
    assert "130 images in 2 data sets, 125 an epoch" in start_line(plan)
    assert "130 images in 2 data sets ·" in start_line(planned(sets, "data.train=[<>/a,<>/b]"))
    assert "90 images ·" in start_line(planned(sets, "data.train=<>/a"))
    both = probe_data(plan)
    assert both is not None
    assert both[0].digest == planned(sets, "data.train=[<>/a,<>/b]").train_data.digest  # a probe knows no weights
    single = [planned(sets, f"data.train=<>/{name}") for name in "ab"]
    low, high = sorted(one.mean[0] for one in single)
    assert low < plan.mean[0] < high


def test_identity_covers_the_sets_and_their_weights(sets: Path, tmp_path: Path) -> None:
    plain = planned(sets, "data.train=<>/a")
    assert plain.identity["data"]["manifest"] == plain.train_data.parts[0].digest
    assert plain.identity == planned(sets, "data.train=[<>/a]", "data.weights=[1]").identity
    run = RunFolder.open(str(tmp_path), "first", identity=plain.identity, config={})
    del run.record.identity["data"]["weights"]  # as in a run of an earlier version
    run.update()
    RunFolder.open(str(tmp_path), "first", identity=plain.identity, config={})
    for words, said in (
        (["data.train=[<>/a,<>/b]"], r"data.manifest was .*, now"),
        (["data.train=<>/a", "data.weights=[2]"], r"data.weights was None, now \[2.0\]"),
    ):
        with pytest.raises(UserError, match=said):
            RunFolder.open(str(tmp_path), "first", identity=planned(sets, *words).identity, config={})


def test_paths_of_all_sets_become_absolute(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sets)
    values = values_of(sets, "data.train=[a,s3://there/b]", "probe.train=b")
    assert values["data"]["train"] == [f"{sets}/a", "s3://there/b"]
    assert values["probe"]["train"] == f"{sets}/b"
    assert values["data"]["val"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.train=[]"], r"data.train=\[\] names no data"),
        (["data.train=[<>/a,<>/b]", "data.weights=[1]"], "data.weights has 1 values for 2 data sets"),
        (["data.train=[<>/a,<>/b]", "data.weights=[1,0]"], "above 0"),
        (["data.train=[<>/a,<>/b]", "data.weights=2"], "data.weights=2 has the wrong type: expected a list"),
        (["data.train=[<>/a,<>/a]"], "the same data twice"),
        (["data.train=<>/a", "data.processes=-1"], "data.processes=-1: use at least 0"),
        (["data.train=<>/a", "data.threads=0"], "data.threads=0: use at least 1"),
        (["data.train={a: 1}"], "data.train=.* has the wrong type: expected text or a list"),
        (["data.train=[<>/a,<>/c]", "data.val=<>/b"], "/a and .*/c has 90 labels for 110 samples"),
        (["data.train=[<>/a,<>/d]", "data.val=<>/b"], "/a and .*/d have different classes"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(sets: Path, words: Sequence[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_inputs(planned(sets, *words))


@pytest.mark.parametrize(
    ("asked", "gpu", "cores", "threads", "processes"),
    [
        (None, False, 16, 1, 0),
        (None, True, 16, 1, 15),
        (None, True, 16, 4, 3),
        (None, True, 1, 1, 1),
        (None, True, 4, 8, 1),
        (0, True, 16, 1, 0),
        (3, True, 16, 2, 3),
        (3, False, 2, 1, 3),
    ],
)
def test_loader_processes_keep_the_cores_beside_a_gpu_busy(
    asked: int | None, gpu: bool, cores: int, threads: int, processes: int
) -> None:
    data = DataConfig(train="shards", processes=asked, threads=threads)
    assert loader_processes(data, gpu=gpu, cores=cores) == processes


def test_workers_of_a_machine_share_its_cores(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    plan = planned(sets, "data.train=<>/a", "train.threads=null")
    assert [threads_per_worker(plan, workers) for workers in (1, 2, 3, 9)] == [8, 4, 2, 1]
    assert threads_per_worker(planned(sets, "data.train=<>/a", "train.threads=3"), 2) == 3


def test_labels_are_asked_for_by_probes_alone(sets: Path) -> None:
    check_inputs(planned(sets, "data.train=[<>/a,<>/c,<>/d]"))
    check_inputs(planned(sets, "data.train=[<>/a,<>/c,<>/d]", "probe.train=<>/a", "data.val=<>/b"))


def test_a_run_shows_each_set_as_often_as_its_weight_says(sets: Path, tmp_path: Path) -> None:
    values = values_of(sets, "data.train=[<>/a,<>/b]", "data.weights=[0.5,2]", "train.steps=6")
    run_worker(Job(config=values, folder=str(tmp_path), attempt=1), InProcessContext(folder=tmp_path))
    lines = join_parts(tmp_path, "audit")
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1]
    for epoch in (0, 1):
        shown = np.bincount([one for line in lines if line["epoch"] == epoch for one in line["ids"]], minlength=130)
        assert shown[:90].max() == 1
        assert shown[90:].max() == 2
        assert shown.sum() == 3 * 32
        assert shown[:90].sum() >= 45 - 29
        assert shown[90:].sum() >= 80 - 29


def test_the_probe_of_a_run_takes_its_sets(sets: Path, tmp_path: Path) -> None:
    values = values_of(sets, "data.train=[<>/a,<>/b]", "data.val=<>/b")
    RunFolder.open(str(tmp_path), "first", identity={}, config=values).update()
    config = typed(probe.ProbeCommand, compose("probe", ["run=first"]))
    train, val = probe._labelled_data(config, tmp_path / "first")  # pyright: ignore[reportPrivateUsage] (no encoder)
    assert [Path(part.root).name for part in (*train.parts, *val.parts)] == ["a", "b", "b"]


@pytest.mark.parametrize(
    ("words", "workers", "planned_for"),
    [("2", (2, 2), 2), ("[1,2]", (1, 2), 2), ("[1,64]", (1, 2), 2), ("null", (1, 1), 1)],
)
def test_workers_are_a_number_or_a_range_within_the_lanes(
    sets: Path, words: str, workers: tuple[int, int], planned_for: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.plan.default_workers", lambda: 1)
    plan = planned(sets, "data.train=<>/a", f"train.workers={words}")
    assert (plan.workers, plan.lanes.world) == (workers, planned_for)
    assert make_plan(plan.values, workers=1).workers == workers


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("train.workers=[3,4]", "train.workers=3 with data.lanes=2"),
        ("train.workers=0", "train.workers=0"),
        ("train.workers=[2,1]", r"train.workers=\[2,1\]: write the least and the most"),
        ("train.workers=[1,2,3]", "train.workers"),
        ("train.max_failures=-1", "use at least 0"),
        ("train.hang_timeout=0", "use at least 3 seconds"),
    ],
)
def test_what_no_attempt_can_have_is_refused(sets: Path, word: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        planned(sets, "data.train=<>/a", word)


def test_held_out_labels_take_the_place_of_a_validation_set(sets: Path) -> None:
    kept, held = probe_sets(planned(sets, "data.train=<>/a", "probe.held_out=0.2")) or (None, None)
    assert kept is not None
    assert held is not None
    assert ((kept.images.labels() >= 0).sum(), (held.images.labels() >= 0).sum()) == (72, 18)
    with pytest.raises(UserError, match=r"probe.held_out=0.2 takes the place of a validation set: leave out .*/b, or"):
        probe_data(planned(sets, "data.train=<>/a", "data.val=<>/b", "probe.held_out=0.2"))
    with pytest.raises(UserError, match=r"probe.held_out=1: use a share between 0 and 1"):
        planned(sets, "data.train=<>/a", "probe.held_out=1")
