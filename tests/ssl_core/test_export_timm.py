"""The folder for timm: its users get the same features to the bit; a model that timm cannot express is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssl_core import export_timm
from ssl_core.errors import UserError
from ssl_core.export import ExportConfig, export_digest, load_encoder, model_card, publish_card, save_encoder
from ssl_core.export_timm import save_timm_folder
from ssl_core.nn.backbones import ModelConfig, build_encoder

VIT: dict[str, Any] = {"patch_size": 4, "depth": 2, "num_heads": 3, "embed_dim": 24, "global_pool": "avg"}
MODELS = {
    "resnet": ModelConfig(
        name="resnet18", image_size=40, arguments={"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    ),
    "grey": ModelConfig(name="test_resnet", image_size=64, in_chans=1),
    "vit": ModelConfig(name="vit_tiny_patch16_224", image_size=16, arguments=VIT),
    "efficientnet": ModelConfig(name="test_efficientnet", image_size=32),
    "with a tag": ModelConfig(name="test_vit.r160_in1k", image_size=160),
}


def exported(folder: Path, model: ModelConfig) -> Path:
    encoder = build_encoder(model, seed=3)
    numbers = tuple(0.1 * (channel + 3) for channel in range(model.in_chans))
    config = ExportConfig(model=model, mean=numbers, std=numbers, num_features=encoder.num_features)
    save_encoder(folder, encoder, config)
    publish_card(folder, model_card(config, title="Encoder of a run", facts=["| linear | 61 % |"]))
    return folder


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@torch.inference_mode()
def test_timm_alone_makes_the_same_features(
    tmp_path: Path, model: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = exported(tmp_path / "export", model)
    before = export_digest(export)
    save_timm_folder(export, tmp_path / "timm")
    assert export_digest(export) == before
    text = (tmp_path / "timm" / "README.md").read_text()
    assert text.startswith("# Encoder of a run\n")
    assert "| linear | 61 % |" in text
    assert "ssl_core" not in text
    monkeypatch.chdir(tmp_path / "timm")
    names: dict[str, Any] = {}
    exec(text.split("```python")[1].split("```")[0], names)
    images = torch.rand(4, model.in_chans, model.image_size, model.image_size)
    assert torch.equal(names["model"](images), load_encoder(export).encoder(images))

    from timm.data.config import resolve_model_data_config

    known = resolve_model_data_config(names["model"])
    assert list(known["input_size"]) == [model.in_chans, model.image_size, model.image_size]
    assert known["mean"] == pytest.approx([0.1 * (channel + 3) for channel in range(model.in_chans)])
    assert (known["crop_pct"], known["interpolation"]) == (1.0, "bilinear")


def test_a_stem_that_timm_does_not_have_is_named(tmp_path: Path) -> None:
    export = exported(tmp_path / "export", ModelConfig(name="resnet18", image_size=16, stem="cifar"))
    with pytest.raises(UserError, match=r"timm cannot express this encoder, its resnet18 has no stem cifar"):
        save_timm_folder(export, tmp_path / "timm")
    assert not (tmp_path / "timm").exists()


def test_other_features_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = exported(tmp_path / "export", MODELS["resnet"])

    def damaged(source: Path, target: Path) -> None:
        tensors = load_file(source)
        tensors["conv1.weight"][0, 0, 0, 0] += 0.01
        save_file(tensors, target)

    monkeypatch.setattr(export_timm.shutil, "copyfile", damaged)
    with pytest.raises(UserError, match="makes another model of resnet18"):
        save_timm_folder(export, tmp_path / "timm")


def test_the_config_has_no_weights_of_others_to_fetch(tmp_path: Path) -> None:
    save_timm_folder(exported(tmp_path / "export", MODELS["with a tag"]), tmp_path / "timm")
    content = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert content["architecture"] == "test_vit"
    assert not {"url", "hf_hub_id", "file"} & content["pretrained_cfg"].keys()
