"""Servers on loopback, MLflow's own checks left on, and nothing of an artefact is run."""

import pickle
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_core.export import ExportConfig, export_digest, load_encoder, save_encoder
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.probe.features import embed

ROOT = Path(__file__).resolve().parents[1]
EVERYWHERE = re.compile(r"0\.0\.0\.0|\[::\]|host=['\"]?\*|--host[ =]\*")
UNGUARDED = re.compile(r"--disable-security-middleware|--allowed-hosts[ =]['\"]?\*|--cors-allowed-origins[ =]['\"]?\*")
SOURCES = ["pipelines/**/*.py", "ssl_core/**/*.py", "cluster/*.py", "configs/**/*.yaml", "Makefile"]
TINY = ModelConfig(
    name="resnet18", image_size=16, stem="cifar", arguments={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]}
)


def faults(text: str) -> list[str]:
    """What would listen everywhere, or let any page of any site talk to MLflow."""
    return EVERYWHERE.findall(text) + UNGUARDED.findall(text)


@pytest.mark.parametrize(
    "line", ["mlflow server --host 0.0.0.0", 'dashboard_host="0.0.0.0"', "mlflow ui --disable-security-middleware"]
)
def test_what_would_listen_everywhere_is_found(line: str) -> None:
    assert faults(line)


def test_nothing_asks_to_listen_everywhere() -> None:
    files = [path for pattern in SOURCES for path in ROOT.glob(pattern)]
    assert len(files) > 100
    assert [str(path) for path in files if faults(path.read_text(encoding="utf-8"))] == []


def test_the_pages_of_mlflow_are_served_on_loopback(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    words = ["make", "--dry-run", "--always-make", "ui", f"STORE={tmp_path}", "PYTHON=python3"]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (served,) = re.findall(r"mlflow server .*", said.replace("\\\n", " "))
    assert "--host 127.0.0.1 " in served
    assert not faults(served)


class Runs:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (str(self._path),)


def test_nothing_in_an_encoders_folder_is_run(tmp_path: Path) -> None:
    encoder = build_encoder(TINY)
    folder = tmp_path / "encoder"
    config = ExportConfig(model=TINY, mean=(0.5,) * 3, std=(0.2,) * 3, num_features=encoder.num_features)
    save_encoder(folder, encoder, config)
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')"
    for name in ("__init__.py", "sitecustomize.py", "conftest.py", "timm.py", "code/evil.py", "usercustomize.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    for name in ("python_model.pkl", "encoder.pt", "encoder.bin", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Runs(ran)))
    (folder / "MLmodel").write_text("flavors: {python_function: {loader_module: evil, code: code}}")
    assert export_digest(folder)
    assert embed(load_encoder(folder), [np.zeros((16, 16, 3), np.uint8)]).shape == (1, 8)
    assert not ran.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(folder / "encoder.pt", weights_only=True)  # as any tensors that this project reads would be
    assert not ran.exists()
