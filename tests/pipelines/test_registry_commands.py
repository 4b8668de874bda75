"""`register`, `models`, `pull` from the command line: what they print, and the one line on bad input."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import RunMaker

from pipelines import models, pull, register
from pipelines.mlflow_connection import connect
from pipelines.models import aligned
from ssl_core.errors import UserError
from ssl_core.export import load_encoder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """What was printed since the last call."""
    return lambda: capsys.readouterr().out


def test_the_road_of_a_model(store: str, runs: RunMaker, tmp_path: Path, said: Any) -> None:
    place = [f"tracking.uri={store}", f"storage={runs.storage}"]
    models.main(place)
    assert "no registered models" in said()
    runs("a", linear=0.5)
    register.main(["run=a", "model=m", *place])
    text = said()
    assert "registered models:/m/1: champion, because it is the first version with a probe" in text
    assert f"next: python -m pipelines.pull model=models:/m@champion to=<folder> tracking.uri={store}" in text
    register.main([f"run={runs('b', linear=0.502)}", "model=m", *place])
    assert "registered models:/m/2: challenger" in said()

    models.main(["model=m", *place])
    head, first, second = said().splitlines()
    assert head.split() == ["version", "alias", "registered", "run", "linear", "knn20", "probed", "on"]
    assert first.split()[:2] == ["1", "champion"]
    assert "50.00 ± 1.00" in first
    assert second.split()[:2] == ["2", "challenger"]

    models.main(["promote=m/2", *place])
    assert "models:/m/2 is the champion by hand, in place of version 1" in said()
    models.main(place)
    assert "champion (by hand)" in said()
    models.main(["rollback=m", *place])
    assert "models:/m/1 is the champion by hand" in said()

    pull.main(["model=models:/m@champion", f"to={tmp_path / 'pulled'}", *place])
    assert "README.md, checksums.json, config.json, encoder.safetensors" in said()
    assert load_encoder(tmp_path / "pulled").config.num_features == 8


def test_versions_are_compared_in_the_gates_own_terms(store: str, runs: RunMaker, said: Any) -> None:
    client = connect(store)
    experiment = client.create_experiment("e")
    for name, linear, error, data, temperature in (
        ("a", 0.5, 0.01, "A", "0.2"),
        ("b", 0.508, 0.01, "A", "0.1"),
        ("c", 0.53, 0.02, "A", "0.1"),
        ("d", 0.9, 0.01, "B", "0.1"),
    ):
        run = client.create_run(experiment).info.run_id
        for key, value in {"method.temperature": temperature, "seed": "0", "name": name}.items():
            client.log_param(run, key, value)
        register.main(
            [
                f"run={runs(name, linear=linear, error=error, data=data, mlflow_run=run)}",
                "model=m",
                f"tracking.uri={store}",
            ]
        )
    said()
    models.main(["compare=m/1,m/2,m@champion,models:/m/4", f"tracking.uri={store}"])
    rows = {
        line.split("  ")[0]: [cell.strip() for cell in line.split("  ") if cell.strip()] for line in said().splitlines()
    }
    assert rows[""] == ["m/1", "m/2", "m/3", "m/4", "m/2 against m/1", "m/3 against m/1", "m/4 against m/1"]
    assert rows["linear"][1:5] == ["50.00 ± 1.00 %", "50.80 ± 1.00 %", "53.00 ± 2.00 %", "90.00 ± 1.00 %"]
    assert rows["linear"][5:] == [
        "+0.80, within one standard error",
        "+3.00, more than one standard error",
        "not comparable: other data",
    ]
    assert rows["method.temperature"] == ["method.temperature", "0.2", "0.1", "0.1", "0.1"]
    assert "seed" not in rows
    assert "name" not in rows
    register.main([f"run={runs('e', linear=0.5)}", "model=m", f"tracking.uri={store}"])
    said()
    models.main(["compare=[m/1,m/5]", f"tracking.uri={store}"])
    text = said()
    assert "does not have the run of m/5" in text
    assert "method.temperature" not in text


def test_a_model_card_loads_in_plain_torch(store: str, runs: RunMaker, tmp_path: Path) -> None:
    """The card's own lines, executed, give the exporter's weights."""
    runs("a", linear=0.5)
    register.main(["run=a", "model=m", f"tracking.uri={store}", f"storage={runs.storage}"])
    pull.main(["model=models:/m/1", f"to={tmp_path / 'pulled'}", f"tracking.uri={store}"])
    code = (tmp_path / "pulled" / "README.md").read_text().split("```python")[1].split("```")[0]
    scope: dict[str, Any] = {}
    exec(code.replace('"encoder.safetensors"', repr(str(tmp_path / "pulled" / "encoder.safetensors"))), scope)
    expected = load_encoder(tmp_path / "pulled").encoder.backbone.state_dict()
    assert scope["model"].state_dict().keys() == expected.keys()
    assert all((scope["model"].state_dict()[name] == tensor).all() for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("main", "words", "expected"),
    [
        (register.main, [], "run=<folder or name> model=<name>"),
        (pull.main, ["model=models:/m@champion"], "to=<folder>"),
        (models.main, ["promote=m"], "write promote=<name>/<version>"),
        (models.main, ["promote=m/2", "rollback=m"], "one of model=, compare=, promote= and rollback="),
        (models.main, ["compare=m/2"], "name two versions or more"),
        (models.main, ["promote=m/2", "storage=nowhere"], "there are no registered models"),
        (pull.main, ["model=models:/m@champion", "to=s3://bucket/m"], "s3://bucket/m"),
    ],
)
def test_bad_input_is_named(
    main: Any, words: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        main(words)
    assert expected in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_columns_line_up() -> None:
    assert aligned([["a", "b"], ["long", "x"]]) == "a     b\nlong  x"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["register", "run=absent", "model=m"], "absent"),
        (["pull", "model=models:/unheardof@champion", "to=m"], "unheardof"),
        (["embed", "model=m", "data=.", "output=e.parquet"], "m: no such folder"),
        (["models", "promote=m/1"], "no registered models"),
    ],
)
def test_bad_input_is_one_line_before_anything_heavy_is_imported(words: list[str], named: str, tmp_path: Path) -> None:
    """The heavy packages are made impossible to import."""
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'mlflow', 'ray', 'timm', 'pandas']))\n"
        f"sys.path.insert(0, {str(ROOT)!r}); sys.argv = {['x', *words[1:]]!r}\n"
        f"import runpy; runpy.run_module('pipelines.{words[0]}', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1
    assert named in lines[0]
    assert len(lines[0]) < 400
    assert list(tmp_path.iterdir()) == []


def test_models_of_others_are_listed_whatever_they_are_called(store: str, said: Any) -> None:
    client = connect(store)
    for name in ("Anna's model", "My Model"):
        client.create_registered_model(name)
        client.create_model_version(name, "s3://elsewhere/model", tags={"probe.note": "good"})
    models.main([f"tracking.uri={store}"])
    text = said()
    assert "\nAnna's model\n" in text
    assert "\nMy Model\n" in text


def test_an_empty_registry_is_named_without_its_password(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_models(uri: str) -> None:
        return None

    def no_names(client: None) -> list[str]:
        return []

    monkeypatch.setattr("pipelines.registry.open_registry", no_models)
    monkeypatch.setattr("pipelines.model_versions.registered_names", no_names)
    models.main(["tracking.uri=http://me:hunter2@127.0.0.1:5000"])
    assert said().startswith("no registered models at 127.0.0.1:5000; next: ")
