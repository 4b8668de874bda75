"""Registering, the gate, pulling, promotion: against a real MLflow store and real (tiny) exports."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RunMaker, export_tiny

from pipelines import model_versions, registry
from pipelines.mlflow_connection import connect
from pipelines.model_versions import insist, promote, roll_back, versions
from pipelines.registry import pull_model, register_run, resolve
from pipelines.run_folder import RunFolder
from ssl_core.errors import UserError
from ssl_core.export import load_encoder, publish_card


def aliases(store: str, model: str = "m") -> dict[str, int]:
    return {alias: one.number for one in versions(connect(store), model) for alias in one.aliases}


def test_a_version_has_its_tags_and_files(store: str, runs: RunMaker, tmp_path: Path) -> None:
    client = connect(store)
    experiment = client.create_experiment("e", artifact_location=str(tmp_path / "mlartifacts"))
    mlflow_run = client.create_run(experiment).info.run_id
    run = runs("first", linear=0.5, mlflow_run=mlflow_run)
    done = register_run(run, "m", store)
    assert (done.version, done.new, done.alias) == (1, True, "champion")
    assert "first version with a probe (linear 50.00 ± 1.00 %)" in str(done)
    (version,) = versions(client, "m")
    expected = {"run": "first", "mlflow_run": mlflow_run, "manifest": "0" * 64, "probe.data": "A"}
    expected |= {"probe.linear": "0.5", "probe.linear.error": "0.01"}
    assert expected.items() <= version.tags.items()
    assert version.probe() == {"linear": (0.5, 0.01), "knn20": (0.25, 0.01)}
    assert client.get_model_version("m", "1").run_id == mlflow_run

    (artefact,) = (tmp_path / "mlartifacts" / "models").glob("*/artifacts")
    files = sorted(str(path.relative_to(artefact)) for path in artefact.rglob("*") if path.is_file())
    assert [name for name in files if name.startswith("data")] == [
        f"data/export/{name}" for name in ("README.md", "checksums.json", "config.json", "encoder.safetensors")
    ]
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".py", ".pt", ".pth", ".bin"))]
    text = (artefact / "MLmodel").read_text()
    assert str(tmp_path) not in text  # no path of the machine that registered it
    assert "loader_module: pipelines.serving" in text
    assert (artefact / "requirements.txt").read_text().startswith("ssl-pipelines")


def test_the_same_run_is_registered_once(store: str, runs: RunMaker, tmp_path: Path) -> None:
    run = runs("first", linear=0.5)
    register_run(run, "m", store)
    runs("first", linear=0.6, data="B")  # probed again, on other data
    publish_card(run / "export", "# another card")
    again = register_run(run, "m", store)
    assert (again.version, again.new, again.alias) == (1, False, "champion")
    (version,) = versions(connect(store), "m")
    assert version.tags["probe.data"] == "B"
    assert version.probe()["linear"] == (0.6, 0.01)
    pull_model("models:/m/1", tmp_path / "pulled", store)  # what is there still fits its digest


def test_the_gate(store: str, runs: RunMaker) -> None:
    assert register_run(runs("none"), "m", store).alias is None
    assert aliases(store) == {}
    assert register_run(runs("a", linear=0.5), "m", store).alias == "champion"
    within = register_run(runs("b", linear=0.505), "m", store)
    assert within.alias == "challenger"
    assert "not one standard error above version 2" in within.reason
    assert aliases(store) == {"champion": 2, "challenger": 3}
    above = register_run(runs("c", linear=0.52), "m", store)
    assert above.alias == "champion"
    assert "more than one standard error above version 2" in above.reason
    assert "other data" in register_run(runs("d", linear=0.9, data="B"), "m", store).reason
    assert aliases(store) == {"champion": 4, "challenger": 5}
    assert register_run(runs("a", linear=0.5), "m", store).alias is None  # an old one again moves nothing
    assert aliases(store) == {"champion": 4, "challenger": 5}
    knn = register_run(runs("e", linear=0.1), "other.one", store, metric="knn20")
    assert "knn20 5.00" in knn.reason


def test_a_race_is_repaired(store: str, runs: RunMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another, better run is registered between this one's reading of all versions and its setting of the alias."""
    register_run(runs("old", linear=0.3), "m", store)
    late = runs("better", linear=0.7)
    judge = model_versions.champion

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(model_versions, "champion", judge)
        decided = judge(*arguments)
        assert register_run(late, "m", store).alias == "champion"
        return decided

    monkeypatch.setattr(model_versions, "champion", interrupted)
    slow = register_run(runs("good", linear=0.5), "m", store)
    assert aliases(store)["champion"] == 3
    assert slow.alias != "champion"


@pytest.mark.parametrize(
    ("refusals", "code", "fails"), [(2, "BAD_REQUEST", False), (3, "BAD_REQUEST", True), (1, "INTERNAL_ERROR", True)]
)
def test_a_row_that_two_write_at_once_is_written_again(refusals: int, code: str, fails: bool) -> None:
    """MLflow refuses the second of two inserts ; nothing else is tried again."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ErrorCode

    written = list[str]()

    def write(*arguments: str) -> None:
        written.append(arguments[0])
        if len(written) <= refusals:
            raise MlflowException("UNIQUE constraint failed", error_code=ErrorCode.Value(code))

    if fails:
        with pytest.raises(MlflowException):
            insist(write, "tag")
    else:
        insist(write, "tag")
    assert len(written) == (1 if code == "INTERNAL_ERROR" else 3)


def test_promotion_by_hand_and_back(store: str, runs: RunMaker) -> None:
    for name, linear in (("a", 0.5), ("b", 0.7)):
        register_run(runs(name, linear=linear), "m", store)
    client = connect(store)
    assert "in place of version 2" in promote(client, "m", 1)
    assert aliases(store) == {"champion": 1}
    assert "promoted" in versions(client, "m")[0].tags
    again = register_run(runs("b", linear=0.7), "m", store)
    assert (aliases(store)["champion"], again.alias) == (1, "challenger")
    assert register_run(runs("c", linear=0.6), "m", store).alias == "champion"
    assert "models:/m/1 is the champion by hand" in roll_back(client, "m")
    assert aliases(store)["champion"] == 1
    with pytest.raises(UserError, match="model m has no version 9: there are 1, 2, 3"):
        promote(client, "m", 9)
    with pytest.raises(UserError, match="no registered model x"):
        roll_back(client, "x")


def test_pull_gives_the_encoder_that_was_exported(store: str, runs: RunMaker, tmp_path: Path) -> None:
    run = runs("a", linear=0.5)
    register_run(run, "m", store)
    (tmp_path / "empty").mkdir()
    folder = pull_model("models:/m@champion", tmp_path / "empty", store)
    x = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(load_encoder(folder).encoder(x), load_encoder(run / "export").encoder(x))
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in (run / "export").iterdir())
    assert pull_model("models:/m/1", folder, store) == folder  # it is there already
    (folder / "config.json").write_text("{}")
    export_tiny(tmp_path / "other", seed=99)  # whole, but another encoder
    for occupied in (folder, tmp_path / "other"):
        with pytest.raises(UserError, match=r"exists and is not models:/m/1"):
            pull_model("models:/m/1", occupied, store)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_damaged_artefact_is_not_pulled(store: str, runs: RunMaker, tmp_path: Path) -> None:
    register_run(runs("a", linear=0.5), "m", store)
    (weights,) = (tmp_path / "mlartifacts").rglob("encoder.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        pull_model("models:/m/1", tmp_path / "pulled", store)
    assert not (tmp_path / "pulled").exists()
    export_tiny(weights.parent, seed=99)  # whole, but another encoder
    with pytest.raises(UserError, match="damaged"):
        pull_model("models:/m/1", tmp_path / "pulled", store)
    shutil.rmtree(weights.parent)
    with pytest.raises(OSError, match=r"models|artifact"):
        pull_model("models:/m/1", tmp_path / "pulled", store)
    assert not [path.name for path in tmp_path.iterdir() if "pulled" in path.name]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("models:/unheardof@champion", "no registered model unheardof"),
        ("models:/m@best", r"no alias best; there are /1, @champion"),
        ("models:/m/7", "no version 7: there are 1"),
        ("models:/m", "write models:/<name>@champion"),
        ("m", "write models:/<name>@champion"),
    ],
)
def test_what_is_not_there_is_named(store: str, runs: RunMaker, uri: str, words: str) -> None:
    register_run(runs("a", linear=0.5), "m", store)
    with pytest.raises(UserError, match=words):
        resolve(uri, store)


def test_a_run_that_cannot_be_registered_is_named(store: str, runs: RunMaker) -> None:
    with pytest.raises(UserError, match="absent"):
        register_run(runs.storage / "absent", "m", store)
    run = runs("half")
    RunFolder.open(
        str(runs.storage), "half", identity=json.loads((run / "run.json").read_text())["identity"], config={}
    )
    record = json.loads((run / "run.json").read_text()) | {"state": "interrupted"}
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"half is not finished \(interrupted\)"):
        register_run(run, "m", store)
    with pytest.raises(UserError, match="metric=fine is not in the probe of run a: it has linear, knn20"):
        register_run(runs("a", linear=0.5), "m", store, metric="fine")
    for name in ("a/b", "a b", "a'b", ""):
        with pytest.raises(UserError, match="cannot be a model's name"):
            register_run(runs("a", linear=0.5), name, store)
    weights = runs("a", linear=0.5) / "export" / "encoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="differs from its checksum"):
        register_run(runs.storage / "a", "m", store)
    assert versions(connect(store), "m", missing_ok=True) == []


def test_reading_where_there_is_no_store_makes_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="models:/m@champion cannot be had: there are no registered models"):
        resolve("models:/m@champion", f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_probe_numbers_survive_as_they_are(store: str, runs: RunMaker) -> None:
    value = float(np.nextafter(0.1, 1))
    register_run(runs("a", linear=value, error=1 / 3), "m", store)
    assert versions(connect(store), "m")[0].entry("linear").value == value
    assert registry.METRIC == "linear"
