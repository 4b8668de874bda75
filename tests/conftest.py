"""What all tests share: fixed threads, no servers or credentials of the user's, stages by cost, the folder `shared`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from cluster.mlflow_server import MlflowServer, mlflow_server
from cluster.object_store import ObjectStore, object_store

# Before torch, OpenCV or a subprocess reads them: sums are added in the same order on every machine, and test workers
# do not fight for cores.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
    # no call leaves this machine
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # Ray reads it when it is first imported
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
    # what a test stores, it stores in its own folder
    "AWS_EC2_METADATA_DISABLED": "true",
    # but for machine code, which each test would compile anew
    "NUMBA_CACHE_DIR": str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "compiled"),
}
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "RAY_ADDRESS", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
    os.environ.pop(name, None)

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("slow", "s3", "ray", "browser", "chaos")  # markers in the order of their cost; a test without one comes first


def _stage(item: pytest.Item) -> int:
    return max((STAGES.index(mark.name) + 1 for mark in item.iter_markers() if mark.name in STAGES), default=0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cheap tests first; tests for a GPU only where there is one."""
    items.sort(key=_stage)
    wants_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if wants_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in wants_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """A stage in which a test failed is finished, the dearer ones after it are not begun."""
    result = yield
    if nextitem is not None and item.session.testsfailed and _stage(nextitem) > _stage(item):
        item.session.shouldfail = f"stage '{('unit', *STAGES)[_stage(item)]}' failed, dearer stages not run"
    return result


@pytest.fixture(autouse=True)
def one_thread() -> Generator[None]:
    """What a test runs in its own process may set torch's threads, as a worker does; the next test has one again."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the checkout, with data and checks; tests that need it are skipped without it."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared, which is not here")
    return folder


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Generator[ObjectStore]:
    """A real S3 endpoint on the loopback interface."""
    with object_store(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
def s3_store(endpoint: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The endpoint, as who has it and its credentials in the environment sees it; what fails is soon tried again."""
    for name, value in endpoint.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("ssl_core.storage.s3._FIRST_PAUSE_SECONDS", 0.001)
    return endpoint


@pytest.fixture(scope="session")
def mlflow_on_s3(endpoint: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Generator[MlflowServer]:
    """A real MLflow server with a database; its artifacts go to the bucket `mlflow`, whose keys only the server has."""
    endpoint.make_bucket("mlflow")
    folder = tmp_path_factory.mktemp("mlflow-server")
    with mlflow_server(folder, artifacts="s3://mlflow/artifacts", environment=endpoint.environment) as running:
        yield running


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network from a copy, so that no `build/` of an earlier tree gets into it."""
    source = tmp_path_factory.mktemp("source")
    for package in ("pipelines", "ssl_core", "cluster", "configs"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(source / "dist")]
    subprocess.run([sys.executable, "-m", "pip", *words, str(source)], check=True, timeout=240)
    (built,) = (source / "dist").glob("ssl_pipelines-*.whl")
    return built
