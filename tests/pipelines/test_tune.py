"""A sweep before anything starts: what its runs are, what is refused, and that it never looks at validation data."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pipelines import pack
from pipelines.config import compose
from pipelines.run_folder import RunFolder
from pipelines.sweeps.report import in_full
from pipelines.sweeps.sweep import Sweep, plan_sweep
from pipelines.sweeps.trials import Trials
from pipelines.tune import main
from ssl_core.errors import UserError

SHARED = ["model=resnet_micro", "model.image_size=16", "model.in_chans=1", "train.global_batch=128", "data.lanes=2"]


def planned(digits: Path, storage: Path, *words: str) -> Sweep:
    data = [f"data.train={digits}/train", f"data.val={digits}/val", f"storage={storage}"]
    return plan_sweep(compose("tune", [*SHARED, *data, *words]), name="first", words=[])


def test_its_runs_are_pretrainings_that_know_no_validation_data(digits: Path, tmp_path: Path) -> None:
    sweep = planned(
        digits, tmp_path, "sweep=temperature", "tune.epochs=3", "tune.seeds=2", "train.epochs=800", "seed=5"
    )
    sweep.check()
    record = sweep.trials(threads=3).next()
    assert record is not None
    config = record.config
    assert (config["name"], config["seed"], config["method"]["temperature"]) == (
        "method.temperature-0.05-seed-5",
        5,
        0.05,
    )
    assert (config["train"]["epochs"], config["train"]["threads"]) == (3, 3)
    assert config["storage"] == str(tmp_path / "first")
    assert (config["data"]["val"], config["probe"]["val"], config["probe"]["held_out"]) == (None, None, 0.1)
    assert (config["probe"]["at_end"], config["register"]) == (False, None)
    assert str(digits / "val") not in (tmp_path / "first/method.temperature-0.05-seed-5/trial.json").read_text()
    assert sweep.trials().left == 10


@pytest.mark.parametrize(
    ("search", "key", "values"),
    [
        ("grid", "optim.base_rate", "{values: [0.1, 0.2, 0.3]}"),
        ("random", "optim.weight_decay", "{log_uniform: [1e-4, 1e-1]}"),  # numbers, as in configs/
    ],
)
def test_a_sweep_of_ones_own_and_fewer_points_of_it(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], search: str, key: str, values: str
) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(f"search: {search}\nparameters:\n  {key}: {values}\n")
    data = [f"data.train={digits}/train", f"storage={tmp_path}/runs", "train.steps=12", "plan=true"]
    main([f"sweep={own}", "tune.trials=2", *SHARED, *data])
    said = capsys.readouterr().out
    assert f"{search} over {key} · 2 points · 1 seed(s) each · runs of 12 steps" in said
    assert not (tmp_path / "runs").exists()


def test_another_configuration_under_the_same_name_is_refused_and_more_seeds_are_not(
    digits: Path, tmp_path: Path
) -> None:
    planned(digits, tmp_path, "train.steps=12").run.update()
    assert planned(digits, tmp_path, "train.steps=12", "tune.seeds=3").trials().left == 15
    with pytest.raises(UserError, match=r"train.steps was 12, now 13"):
        planned(digits, tmp_path, "train.steps=13")
    with pytest.raises(UserError, match=r"tune.held_out was 0.1, now 0.2"):
        planned(digits, tmp_path, "train.steps=12", "tune.held_out=0.2")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep=mask_ratio"], r"sweep.parameters: with method=simclr there is an unknown key method.mask_ratio"),
        (["sweep=tempurature"], r"unknown sweep=tempurature: did you mean temperature"),
        (["sweep=nowhere.yaml"], r"sweep=nowhere.yaml cannot be read"),
        (["tune.metric=loss"], r"tune.metric=loss: known are knn_online, knn20"),
        (["tune.seeds=0"], r"tune.seeds=0: use at least 1"),
        (["tune.stop_early=true", "tune.grace=9"], r"tune.grace=9 is longer than a run of 1.091 epochs"),
        (["tune.concurent=2"], r"unknown key tune.concurent: did you mean tune.concurrent"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line(digits: Path, tmp_path: Path, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        main([*SHARED, f"data.train={digits}/train", f"storage={tmp_path}", "train.steps=12", *words])
    assert not any(tmp_path.iterdir())


def test_a_point_that_cannot_run_is_found_before_anything_starts(digits: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("search: grid\nparameters:\n  train.global_batch: {values: [128, 100000]}\n")
    with pytest.raises(UserError, match=r"the point train.global_batch=100000 of the sweep cannot run: "):
        main([f"sweep={own}", *SHARED, f"data.train={digits}/train", f"storage={tmp_path}/runs", "train.steps=12"])


def test_data_without_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for number in range(8):
        Image.new("L", (16, 16), number).save(tmp_path / f"flat/{number}.png")
    pack.main([f"source={tmp_path}/flat", f"output={tmp_path}/shards"])
    words = [f"data.train={tmp_path}/shards", f"storage={tmp_path}/runs", "train.steps=2", "train.global_batch=4"]
    with pytest.raises(UserError, match=r"a probe needs a label for each"):
        main([*SHARED, *words])


@pytest.mark.parametrize("key", ["seed", "name", "checkpoints", "probe.every", "data.val", "tracking.uri"])
def test_what_the_sweep_sets_itself_cannot_be_swept(digits: Path, tmp_path: Path, key: str) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text(f"search: grid\nparameters:\n  {key}: {{values: [1, 2]}}\n")
    with pytest.raises(UserError, match=rf"sweep.parameters.{key}: the sweep sets this itself"):
        main([f"sweep={own}", *SHARED, f"data.train={digits}/train", f"storage={tmp_path}/runs", "train.steps=12"])


def test_an_empty_file_is_no_sweep(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{}")
    with pytest.raises(UserError, match=r"sweep.search is missing"):
        main([f"sweep={tmp_path}/mine.yaml", *SHARED, f"data.train={digits}/train", f"storage={tmp_path}/runs"])


def test_what_its_runs_are_judged_by_cannot_change_under_the_same_name(digits: Path, tmp_path: Path) -> None:
    planned(digits, tmp_path, "train.steps=12").run.update()
    with pytest.raises(UserError, match=r"judged_by.online_val was 5000, now 10"):
        planned(digits, tmp_path, "train.steps=12", "probe.online_val=10")
    with pytest.raises(UserError, match=r"judged_by.data was"):
        planned(digits, tmp_path, "train.steps=12", f"probe.train={digits}/val")


def test_checkpoints_of_two_sweeps_lie_apart_and_init_is_found_from_both(digits: Path, tmp_path: Path) -> None:
    trained = RunFolder.open(str(tmp_path), "trained", identity={}, config={})
    trained.update(state="finished")
    words = ["train.steps=12", "init=trained", "checkpoints=s3://bucket/all/"]
    shared = planned(digits, tmp_path, *words).values
    assert (shared["checkpoints"], shared["init"]) == ("s3://bucket/all/first", str(trained.path))
    with pytest.raises(UserError, match=r"there is no run trainde"):
        planned(digits, tmp_path, "train.steps=12", "init=trainde")
    assert planned(digits, tmp_path, "train.steps=12", "init=models:/a@b").values["init"] == "models:/a@b"


def test_an_argument_that_is_not_configured_can_be_swept_alone(digits: Path, tmp_path: Path) -> None:
    own = {"search": "one_by_one", "parameters": {"model.arguments.drop_path_rate": {"values": [0.0, 0.1]}}}
    data = [f"data.train={digits}/train", f"storage={tmp_path}", "train.steps=12"]
    sweep = plan_sweep(compose("tune", [*SHARED, *data]) | {"sweep": own}, name="first", words=[])
    key = "model.arguments.drop_path_rate"
    assert sweep.points == [{}, {key: 0.0}, {key: 0.1}]


def test_an_extended_sweep_with_another_winner_has_that_one_to_train(digits: Path, tmp_path: Path) -> None:
    words = ["train.steps=12", "tune.train_best=true", "tune.trials=2"]
    scores = {(0.05, 0): 0.6, (1.0, 0): 0.5, (0.05, 1): 0.2, (1.0, 1): 0.5}

    def run_all(sweep: Sweep) -> Trials:
        trials = sweep.trials()
        while (record := trials.next()) is not None:
            score = scores[record.point["method.temperature"], record.seed]
            trials.over(replace(record, outcome="finished", score=score))
        return trials

    sweep = planned(digits, tmp_path, *words)
    best = in_full(run_all(sweep), [], "first")
    assert best is not None
    sweep.run.write_summary({"trained": best.name})
    assert not planned(digits, tmp_path, *words).left
    extended = planned(digits, tmp_path, *words, "tune.seeds=2")
    run_all(extended)
    assert planned(digits, tmp_path, *words, "tune.seeds=2").left
