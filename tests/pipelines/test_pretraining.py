"""What a finished run may still lack, and the same command then does: its registration, the rest of its copy."""

import json
from pathlib import Path

import pytest
from conftest import export_tiny, write_probe

from pipelines import pretrain
from pipelines.config import compose
from pipelines.mlflow_connection import connect
from pipelines.model_versions import versions
from pipelines.plan import make_plan, with_absolute_paths
from pipelines.provenance import environment
from pipelines.run_facts import publish_run_card
from pipelines.run_folder import RunFolder, read_record

WORDS = ["method=simclr", "model=resnet_micro", "model.image_size=16", "model.in_chans=1", "train.steps=12", "name=a"]


@pytest.fixture
def words(digits: Path, store: str, tmp_path: Path) -> list[str]:
    return [*WORDS, f"data.train={digits}/train", f"storage={tmp_path}/runs", f"tracking.uri={store}"]


@pytest.fixture
def run(words: list[str]) -> RunFolder:
    values = with_absolute_paths(compose("pretrain", words))
    run = RunFolder.open(values["storage"], "a", identity=make_plan(values).identity, config=values)
    export_tiny(run.path / "export")
    write_probe(run.path, linear=0.5, error=0.01, data="A")
    run.update(attempts=1, environment=environment())
    publish_run_card(run.path)
    (run.path / "metrics").mkdir()
    lines = [{"first_step": 1}, {"step": 12, "time": 1.0, "loss": 0.25}]
    (run.path / "metrics/attempt-0001.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.write_summary({"steps": 12, "images_per_second": 1.0})
    return run


def test_a_finished_run_is_registered_by_the_same_command(
    run: RunFolder, words: list[str], store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for said in ("registered models:/m/1: champion", "models:/m/1 is this run's version already: champion"):
        pretrain.main([*words, "register=m"])
        assert said in capsys.readouterr().out
    assert len(versions(connect(store), "m")) == 1


def test_what_mlflow_lacks_of_a_finished_run_is_sent_by_the_same_command(
    run: RunFolder, words: list[str], store: str
) -> None:
    run.update(copied=False)
    pretrain.main(words)
    record = read_record(run.path)
    assert record.copied
    assert record.mlflow_run is not None
    there = connect(store).get_run(record.mlflow_run)
    assert there.info.status == "FINISHED"
    assert (there.data.metrics["loss"], there.data.metrics["probe.linear"]) == (0.25, 0.5)
    assert {one.path for one in connect(store).list_artifacts(record.mlflow_run)} >= {"export", "summary.json"}
    assert there.data.params["train.steps"] == "12"
