"""The ONNX graph: onnxruntime gives torch's features from plain pixels, at any batch size, or the export is refused."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from ssl_core import export_onnx
from ssl_core.errors import UserError
from ssl_core.export import ExportConfig, load_encoder, model_card, publish_card, save_encoder
from ssl_core.export_onnx import save_onnx
from ssl_core.nn.backbones import ModelConfig, build_encoder

NARROW: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
VIT: dict[str, Any] = {"patch_size": 4, "depth": 2, "num_heads": 3, "embed_dim": 24, "global_pool": "avg"}
MODELS = {
    "cifar stem": ModelConfig(name="resnet18", image_size=16, stem="cifar", arguments=NARROW),
    "grey vit": ModelConfig(name="vit_tiny_patch16_224", image_size=16, in_chans=1, arguments=VIT),
}


def exported(folder: Path, model: ModelConfig) -> Path:
    encoder = build_encoder(model, seed=3)
    numbers = tuple(0.1 * (channel + 3) for channel in range(model.in_chans))
    config = ExportConfig(model=model, mean=numbers, std=numbers, num_features=encoder.num_features)
    save_encoder(folder, encoder, config)
    publish_card(folder, model_card(config, title="Encoder of a run", facts=["| linear | 61 % |"]))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_onnxruntime_gives_torchs_features_from_pixels(
    tmp_path: Path, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = exported(tmp_path / "export", model)
    save_onnx(export, tmp_path / "onnx")
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == ["README.md", "encoder.onnx"]
    loaded = load_encoder(export)
    session: Any = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "encoder.onnx"))
    mean, std = (np.asarray(one, np.float32).reshape(1, -1, 1, 1) for one in (loaded.config.mean, loaded.config.std))
    for count in (1, 7):
        pixels = np.random.default_rng(count).random((count, model.in_chans, 16, 16), np.float32)
        (found,) = session.run(None, {"images": pixels})
        with torch.inference_mode():
            expected = loaded.encoder(torch.from_numpy((pixels - mean) / std)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    text = (tmp_path / "onnx" / "README.md").read_text()
    assert text.startswith("# Encoder of a run\n")
    assert "| linear | 61 % |" in text
    monkeypatch.chdir(tmp_path / "onnx")
    names: dict[str, Any] = {}
    exec(text.split("```python")[1].split("```")[0], names)
    assert names["features"].shape == (2, loaded.config.num_features)


@pytest.mark.slow
def test_weights_beside_the_graph_and_other_features_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = exported(tmp_path / "export", MODELS["cifar stem"])
    monkeypatch.setattr(export_onnx, "_ONE_FILE_BYTES", 0)
    save_onnx(export, tmp_path / "onnx")
    graph, weights = (tmp_path / "onnx" / f"encoder.onnx{end}" for end in ("", ".data"))
    assert weights.stat().st_size > (export / "encoder.safetensors").stat().st_size / 2
    assert b"site-packages" not in graph.read_bytes()  # no path of the machine that made it

    def forgetful(model: export_onnx.FromPixels, images: torch.Tensor) -> torch.Tensor:
        return model.encoder(images)  # the planted fault: a graph without the normalisation

    forward = export_onnx.FromPixels.forward
    write = export_onnx._write_graph  # pyright: ignore[reportPrivateUsage] (where the fault is planted)

    def written(*arguments: Any) -> None:
        monkeypatch.setattr(export_onnx.FromPixels, "forward", forgetful)
        write(*arguments)
        monkeypatch.setattr(export_onnx.FromPixels, "forward", forward)

    monkeypatch.setattr(export_onnx, "_write_graph", written)
    with pytest.raises(UserError, match=r"other features than torch: they differ by .* more than 0\.0001"):
        save_onnx(export, tmp_path / "wrong")


def test_missing_packages_are_named_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without_one(name: str) -> Any:
        return None if name == "onnxscript" else find(name)

    monkeypatch.setattr(export_onnx, "find_spec", without_one)
    with pytest.raises(UserError, match=r"format=onnx needs onnxscript: pip install 'ssl-pipelines\[export\]'"):
        save_onnx(tmp_path / "absent", tmp_path / "onnx")
