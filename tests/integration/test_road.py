"""The whole road: unlabelled images in a flat folder, a small labelled set beside them, to embeddings."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from ssl_core.train.saved_steps import saved_steps

TINY = (
    "experiment=simclr_digits",
    "model.arguments.channels=[8,8,16,16]",
    "train.workers=1",
    "train.global_batch=64",
    "data.lanes=4",
)


def run(command: str, *words: str, status: int = 0) -> str:
    """Run a command; all it said."""
    done = subprocess.run(
        [sys.executable, "-m", f"pipelines.{command}", *words], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`flat/`: 700 digits without labels; `labelled/<class>/`: 400 others."""
    folder = tmp_path_factory.mktemp("images")
    pixels, labels = load_digits(return_X_y=True)
    (folder / "flat").mkdir()
    for number, (image, label) in enumerate(zip(pixels[:1100], labels, strict=False)):
        place = folder / "flat" if number < 700 else folder / "labelled" / str(label)
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{number:04d}.png"), (image.reshape(8, 8) * 15.9375).astype(np.uint8))
    return folder


@pytest.mark.ray
def test_unlabelled_images_to_a_registered_probed_encoder(images: Path, tmp_path: Path) -> None:
    store = f"storage={tmp_path}/runs"
    run("pack", f"source={images}/flat", f"output={tmp_path}/flat")
    run("pack", f"source={images}/labelled", f"output={tmp_path}/labelled", "val_fraction=0.4")
    words = [
        *TINY,
        store,
        f"data.train={tmp_path}/flat",
        f"probe.train={tmp_path}/labelled/train",
        f"probe.val={tmp_path}/labelled/val",
        "name=road",
        "train.steps=12",
        "probe.every=1",
    ]
    run("pretrain", *words, "register=digits")

    summary = json.loads((tmp_path / "runs/road/summary.json").read_text())
    assert (summary["state"], summary["workers"], summary["steps"]) == ("finished", 1, 12)
    assert summary["probe"] is not None
    lines = [json.loads(line) for line in (tmp_path / "runs/road/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "knn_online" in line] == [10, 12]
    pictures = {path.stem for path in (tmp_path / "runs/road/pictures").glob("*.png")}
    assert pictures == {"views", "curves", "neighbours", "map"}
    with closing(sqlite3.connect(tmp_path / "runs/mlflow.db")) as database:
        place = Path(database.execute("select artifact_uri from runs").fetchone()[0].removeprefix("file://"))
    assert {path.stem for path in (place / "pictures").glob("*.png")} == pictures
    logged = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    logged -= {f"pictures/{name}.png" for name in pictures}
    assert logged == {"config.yaml", "environment/attempt-0001.json", "summary.json"} | {
        *(f"manifests/{name}.json" for name in ("train", "probe-train", "probe-val")),
        *(f"export/{name}" for name in ("config.json", "README.md")),
    }

    assert "is finished" in run("pretrain", *words)  # the same command again starts nothing
    refused = run("pretrain", *words, "method.temperature=0.3", status=2)
    assert "method.temperature was 0.2, now 0.3" in refused

    run("pull", "model=models:/digits@champion", f"to={tmp_path}/model", store)
    run("embed", f"model={tmp_path}/model", f"data={tmp_path}/labelled/val", f"output={tmp_path}/e.parquet")
    table = pq.read_table(tmp_path / "e.parquet")
    manifest = json.loads((tmp_path / "labelled/val/manifest.json").read_text())
    assert table.num_rows == sum(shard["samples"] for shard in manifest["shards"])

    card = (tmp_path / "model/README.md").read_text()
    assert card.startswith("# Encoder of the run road\n")
    assert all(words in card for words in ("| pretrained ", "* steps: 12", "* method: simclr", "python 3."))
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0]
    plain = "from ssl_core import torchvision_operators; torchvision_operators.declare_missing()\n" + code
    check = plain + "\nassert model(torch.zeros(2, 1, 16, 16)).shape == (2, 16)"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path / "model", capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.ray
def test_asked_to_stop_it_saves_the_last_step_and_goes_on_from_there(digits: Path, tmp_path: Path) -> None:
    words = [*TINY, f"storage={tmp_path}", f"data.train={digits}/train", "name=stopped", "train.steps=4000"]
    words += ["train.log_every=1", "train.checkpoint_every=1h"]
    command = [sys.executable, "-m", "pipelines.pretrain", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as driver:
        metrics = tmp_path / "stopped/metrics/attempt-0001.jsonl"
        while not metrics.exists() or metrics.read_text().count('"loss"') < 3:
            assert driver.poll() is None, driver.communicate()
            time.sleep(0.05)
        driver.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        said, errors = driver.communicate(timeout=120)
    assert time.monotonic() - asked < 30
    assert driver.returncode == 75, said + errors
    stopped_after = int(re.findall(r"stopped after step (\d+) of 4000", errors)[0])
    assert [one.step for one in saved_steps(tmp_path / "stopped/checkpoints")] == [stopped_after]
    assert "interrupted" in run("runs", f"storage={tmp_path}")
