"""docs/registry.md is run from top to bottom: its commands as they stand, its Python as it stands."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.mlflow_server import MlflowServer
from cluster.object_store import free_ports
from pipelines.run_facts import publish_run_card
from pipelines.run_folder import RunFolder
from ssl_core.export import ExportConfig, save_encoder
from ssl_core.nn.backbones import ModelConfig, build_encoder
from ssl_core.probe.measure import Measure
from ssl_core.probe.report import PRETRAINED, ProbeReport

pytestmark = [pytest.mark.slow, pytest.mark.s3]
ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "registry.md"
TINY = ModelConfig(name="resnet18", image_size=32, arguments={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]})
PORT = "5001"  # the guide's


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def finished_run(storage: Path, name: str, *, linear: float, seed: int) -> None:
    """A run that looks finished: a random encoder with a native stem, and a probe."""
    identity = {"method": {"name": "simclr"}, "data": {"manifest": "0" * 64}, "train": {"steps": 2}}
    run = RunFolder.open(str(storage), name, identity=identity, config={})
    run.update(attempts=1)
    encoder = build_encoder(TINY, seed=seed)
    config = ExportConfig(model=TINY, mean=(0.5,) * 3, std=(0.2,) * 3, num_features=encoder.num_features)
    save_encoder(run.path / "export", encoder, config)
    report = ProbeReport(rows={PRETRAINED: {"linear": Measure(value=linear, error=0.01)}}, protocol=(), data_digest="A")
    (run.path / "probe.json").write_text(json.dumps(report.to_dict()))
    publish_run_card(run.path)
    run.write_summary({})


@pytest.fixture
def reader(mlflow_on_s3: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody who follows the guide: runs `first` and `second`, some photos, a registry."""
    finished_run(tmp_path / "runs", "first", linear=0.5, seed=1)
    finished_run(tmp_path / "runs", "second", linear=0.6, seed=2)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_on_s3.uri)
    return tmp_path


def test_the_guide_can_be_followed(reader: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = list[str]()
    with ExitStack() as stack:
        (port,) = free_ports(1)
        for language, content in blocks(GUIDE.read_text(encoding="utf-8")):
            if content.startswith("# not run by"):
                continue
            if language == "python":
                names: dict[str, Any] = {}
                exec(content.replace(f":{PORT}/", f":{port}/"), names)
                assert len(names["features"]) == len(names.get("texts", names["features"])), content
                ran.append(content)
                continue
            for line in content.splitlines():
                follow(line, str(port), reader, stack)
                ran.append(line)
    said = capsys.readouterr().out
    assert "models:/photos/2: champion" in said
    assert "+10.00, more than one standard error" in said
    assert "models:/photos/2 is the champion by hand, in place of version 1" in said
    first, again = (pq.read_table(reader / f"{name}.parquet")["embedding"] for name in ("embeddings", "again"))
    assert first.equals(again)
    assert len(ran) > 16


def follow(line: str, port: str, folder: Path, stack: ExitStack) -> None:
    """One command of the guide, as it stands there."""
    program, *words = shlex.split(line)
    if program == "python":
        option, module, *overrides = words
        assert (option, module.startswith("pipelines.")) == ("-m", True), line
        importlib.import_module(module).main(overrides)
    else:
        assert line.startswith("mlflow models serve"), f"nothing runs this: {line}"
        stack.enter_context(server([word.replace(PORT, port) for word in words], port, folder))


@contextmanager
def server(words: list[str], port: str, folder: Path) -> Generator[None]:
    """`mlflow …`, until the guide ends."""
    log = folder / "serve.log"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in an environment that is active
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path}
    with log.open("w") as output:
        command = [sys.executable, "-m", "mlflow", *words]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_what_is_not_run_says_why() -> None:
    marked = [
        content.splitlines()[0] for _, content in blocks(GUIDE.read_text(encoding="utf-8")) if "# not run" in content
    ]
    assert len(marked) == 2
    assert all(re.fullmatch(r"# not run by a test[:,] \w.{10,}", line) for line in marked)
