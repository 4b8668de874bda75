"""An MLflow store for each test that wants one (the schema takes 6 s: made once and copied), and finished runs."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines import pack
from pipelines.mlflow_connection import connect
from pipelines.run_facts import publish_run_card
from pipelines.run_folder import RunFolder
from ssl_core.export import ExportConfig, save_encoder
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.probe.measure import Measure
from ssl_core.probe.report import PRETRAINED, ProbeReport

TINY = ModelConfig(
    name="resnet18", image_size=16, stem="cifar", arguments={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
)


@dataclass(frozen=True)
class RunMaker:
    """Makes runs that look finished: a random encoder, exported, with the probe numbers that a test wants."""

    storage: Path

    def __call__(
        self,
        name: str,
        *,
        linear: float | None = None,
        error: float = 0.01,
        data: str = "A",
        seed: int | None = None,
        mlflow_run: str | None = None,
    ) -> Path:
        """The run's folder; the name decides the weights unless a seed does."""
        identity = {"data": {"manifest": "0" * 64}, "train": {"steps": 2}}
        run = RunFolder.open(str(self.storage), name, identity=identity, config={})
        run.update(attempts=1, mlflow_run=mlflow_run)
        export_tiny(run.path / "export", seed=sum(name.encode()) if seed is None else seed)
        if linear is not None:
            write_probe(run.path, linear=linear, error=error, data=data)
        publish_run_card(run.path)
        run.write_summary({})
        return run.path


def export_tiny(folder: Path, *, seed: int = 0) -> None:
    """An exported encoder with 8 features."""
    encoder = build_encoder(TINY, seed=seed)
    config = ExportConfig(model=TINY, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), num_features=encoder.num_features)
    save_encoder(folder, encoder, config)


def write_probe(run: Path, *, linear: float, error: float, data: str) -> None:
    """A probe report with two metrics."""
    row = {"linear": Measure(value=linear, error=error), "knn20": Measure(value=linear / 2, error=error)}
    report = ProbeReport(rows={PRETRAINED: row}, protocol=(), data_digest=data)
    (run / "probe.json").write_text(json.dumps(report.to_dict()))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite file with MLflow's schema and nothing in it."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """The URI of an empty MLflow store in the test's folder."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def runs(tmp_path: Path) -> RunMaker:
    """Makes finished runs in the test's storage folder."""
    return RunMaker(tmp_path / "runs")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits, packed: `train` and `val` with labels."""
    folder = tmp_path_factory.mktemp("digits")
    pack.main(["source=digits", f"output={folder}"])
    return folder
