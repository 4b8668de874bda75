"""Embeddings in parquet: the encoder's own numbers, keys and labels, the same bytes again, whole or not at all."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import RunMaker, export_tiny
from PIL import Image

from pipelines import embed
from pipelines.registry import register_run
from ssl_core.data.manifest import load_manifest
from ssl_core.data.sources import open_source
from ssl_core.data.writer import pack
from ssl_core.errors import UserError
from ssl_core.export import export_digest, load_encoder
from ssl_core.probe import features


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders: 3 cats, 2 dogs, 16 px."""
    rng = np.random.default_rng(0)
    for name in ("cat/a", "cat/b", "cat/c", "dog/a", "dog/b"):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    export_tiny(tmp_path / "model")
    return tmp_path / "model"


def run(model: str | Path, data: str | Path, output: Path, *more: str) -> Any:
    embed.main([f"model={model}", f"data={data}", f"output={output}", "threads=1", *more])
    return cast(Any, pq.read_table(output))


def vectors(table: Any) -> np.ndarray:
    return np.array(table["embedding"].to_pylist(), dtype=np.float32)


def about(table: Any) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in table.schema.metadata.items()}


def test_a_folder_of_images(model: Path, photos: Path, tmp_path: Path) -> None:
    table = run(model, photos, tmp_path / "e.parquet", "batch=2")
    assert str(table.schema.field("embedding").type) in (
        "fixed_size_list<element: float>[8]",
        "fixed_size_list<item: float>[8]",
    )
    assert table["key"].to_pylist() == ["cat/a", "cat/b", "cat/c", "dog/a", "dog/b"]
    assert table["label"].to_pylist() == [0, 0, 0, 1, 1]
    files = [photos / f"{key}.png" for key in table["key"].to_pylist()]
    images = [np.asarray(Image.open(file)) for file in files]
    expected = features.embed(load_encoder(model), images, batch_size=2)
    np.testing.assert_allclose(vectors(table), expected, rtol=1e-5, atol=1e-6)
    assert about(table)["model_digest"] == export_digest(model)
    assert json.loads(about(table)["classes"]) == ["cat", "dog"]


def test_the_same_command_writes_the_same_bytes(model: Path, photos: Path, tmp_path: Path) -> None:
    first = run(model, photos, tmp_path / "e.parquet")
    content = (tmp_path / "e.parquet").read_bytes()
    run(model, photos, tmp_path / "e.parquet")
    assert (tmp_path / "e.parquet").read_bytes() == content
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(photos / "cat" / "a.png")
    other = run(model, photos, tmp_path / "f.parquet")
    assert about(other)["data_digest"] != about(first)["data_digest"]
    assert sorted(path.name for path in tmp_path.glob("*.parquet*")) == ["e.parquet", "f.parquet"]


def test_shards_and_files_give_the_same_numbers(model: Path, photos: Path, tmp_path: Path) -> None:
    pack(open_source(str(photos)), tmp_path / "shards", shard_samples=2, seed=0)
    (photos / "README.txt").write_text("no image")
    packed = run(model, tmp_path / "shards", tmp_path / "e.parquet", "batch=1")
    loose = run(model, photos, tmp_path / "f.parquet", "batch=1")
    assert about(packed)["data_digest"] == load_manifest(tmp_path / "shards").digest
    by_vector = {row["embedding"][0]: row["label"] for row in packed.to_pylist()}
    assert {row["embedding"][0]: row["label"] for row in loose.to_pylist()} == by_vector
    assert len(by_vector) == 5


def test_unlabelled_and_unreadable_images(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "dog" / "a.png").write_bytes(b"no image")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.rglob("*.png"):
        path.rename(flat / f"{path.parent.name}-{path.name}")
    table = run(model, flat, tmp_path / "e.parquet")
    assert table["key"].to_pylist() == ["cat-a", "cat-b", "cat-c", "dog-b"]
    assert table["label"].to_pylist() == [None] * 4
    assert "1 images do not decode and were left out, such as dog-a" in capsys.readouterr().out


def test_a_runs_folder_and_a_registered_model(store: str, runs: RunMaker, photos: Path, tmp_path: Path) -> None:
    folder = runs("a", linear=0.5)
    register_run(folder, "m", store)
    own = run(folder, photos, tmp_path / "e.parquet")
    registered = run("models:/m@champion", photos, tmp_path / "f.parquet", f"tracking.uri={store}")
    assert vectors(own).tolist() == vectors(registered).tolist()
    assert about(own)["model_digest"] == about(registered)["model_digest"]


def test_a_failure_leaves_nothing(model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> Any:
        raise UserError("in the middle")

    monkeypatch.setattr(features, "embed", fails)
    with pytest.raises(UserError, match="in the middle"):
        run(model, photos, tmp_path / "e.parquet")
    assert not [path for path in tmp_path.iterdir() if "parquet" in path.name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "nowhere"}, "model=nowhere: no such folder"),
        ({"data": "nowhere"}, "data=nowhere: no such folder or file"),
        ({"output": "."}, "is a folder: name a file"),
        ({"batch": "0"}, "batch=0"),
        ({"data": "null"}, "name a model, images and a file"),
        ({"model": "models:/m"}, "write models:/<name>@champion"),
        ({"model": "models:/m@champion", "storage": "no_runs"}, "there are no registered models"),
        ({"model": "photos"}, "is not an exported encoder"),
    ],
)
def test_bad_input_is_named(
    change: dict[str, str], words: str, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del model, photos
    monkeypatch.chdir(tmp_path)
    values = {"model": "model", "data": "photos", "output": "e.parquet"} | change
    with pytest.raises(UserError, match=words):
        embed.main([f"{key}={value}" for key, value in values.items()])
    assert not (tmp_path / "e.parquet").exists()
