"""The pictures of a run exist, can be read, and show what the run has the data for."""

from pathlib import Path
from typing import Any

import cv2
import pytest

from pipelines.config import compose
from pipelines.pictures import draw
from pipelines.plan import Plan, make_plan
from pipelines.worker import run_worker
from pipelines.worker_process import Job
from ssl_core.train.context import InProcessContext
from ssl_core.train.records import join_parts, publish_joined

pytestmark = pytest.mark.slow
MAE = [
    *("method=mae", "model=vit_micro", "method.decoder_width=32", "method.decoder_depth=1"),
    "model.arguments={patch_size: 4, depth: 1, num_heads: 2, embed_dim: 32, global_pool: avg, fc_norm: false}",
]
SIMCLR = ["method=simclr", "model=resnet_micro", "model.arguments.channels=[8,8,16,16]", "method.projector=[16,8]"]


def trained(folder: Path, *words: str) -> Plan:
    """A run of twelve steps in this process; an epoch has 11."""
    shared = ["model.image_size=16", "model.in_chans=1", "train.global_batch=128", "data.lanes=2", "train.log_every=1"]
    values: dict[str, Any] = compose(
        "pretrain", [*words, *shared, "train.steps=12", "train.workers=1", "probe.every=1"]
    )
    run_worker(Job(config=values, folder=str(folder), attempt=1), InProcessContext(folder=folder))
    publish_joined(folder, "metrics")
    return make_plan(values)


def test_with_labels_there_are_a_map_and_neighbours_and_mae_shows_its_reconstruction(
    digits: Path, tmp_path: Path
) -> None:
    plan = trained(tmp_path, *MAE, f"data.train={digits}/train", f"data.val={digits}/val")
    assert [line["step"] for line in join_parts(tmp_path, "metrics") if "knn_online" in line] == [11, 12]
    paths = draw(plan, tmp_path)
    assert [path.stem for path in paths] == ["views", "mae", "curves", "neighbours", "map"]
    for path in paths:
        image = cv2.imread(str(path))
        assert image is not None
        assert image.std() > 10, f"{path.name} is blank"
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == sorted(path.name for path in paths)


def test_without_labels_there_are_views_and_curves(digits: Path, tmp_path: Path) -> None:
    plan = trained(tmp_path, *SIMCLR, f"data.train={digits}/train")
    first = {path.stem: path.read_bytes() for path in draw(plan, tmp_path)}
    assert list(first) == ["views", "curves"]
    again = {path.stem: path.read_bytes() for path in draw(plan, tmp_path)}
    assert again["views"] == first["views"]
