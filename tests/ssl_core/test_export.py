"""The exported encoder: what was saved is loaded, no byte may change, and the model card's own code gives the same."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssl_core.errors import UserError
from ssl_core.export import (
    ExportConfig,
    export_digest,
    load_encoder,
    load_weights,
    model_card,
    publish_card,
    save_encoder,
    verify_export,
)
from ssl_core.nn.backbones import Encoder, ModelConfig, build_encoder
from ssl_core.nn.lane_batch_norm import lane_batch_norms, use_lane_batch_norm

NARROW: dict[str, Any] = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
VIT: dict[str, Any] = {"patch_size": 4, "depth": 2, "num_heads": 3, "embed_dim": 24, "global_pool": "avg"}
MODELS = {
    "cifar stem": ModelConfig(name="resnet18", image_size=16, stem="cifar", arguments=NARROW),
    "native stem": ModelConfig(name="resnet18", image_size=40, arguments=NARROW),
    "grey": ModelConfig(name="resnet18", image_size=16, in_chans=1, stem="cifar", arguments=NARROW),
    "vit": ModelConfig(name="vit_tiny_patch16_224", image_size=16, arguments=VIT),
    "efficientnet": ModelConfig(name="test_efficientnet", image_size=32),
    "mixer": ModelConfig(name="mixer_s32_224", image_size=64),
}
FILES = ("encoder.safetensors", "config.json", "README.md", "checksums.json")


def trained(model: ModelConfig) -> Encoder:
    """As training leaves it: lane BatchNorm with statistics that are not the initial ones, channels last."""
    encoder = build_encoder(model, seed=3)
    use_lane_batch_norm(encoder)
    for layer in lane_batch_norms(encoder):
        layer.running_mean.fill_(0.1)
        layer.running_var.fill_(1.7)
    return encoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] (overload missing in the stubs)


def exported(folder: Path, model: ModelConfig = MODELS["cifar stem"]) -> tuple[Encoder, ExportConfig]:
    encoder = trained(model)
    numbers = tuple(0.1 * (channel + 3) for channel in range(model.in_chans))
    config = ExportConfig(model=model, mean=numbers, std=numbers, num_features=encoder.num_features)
    save_encoder(folder, encoder, config)
    return encoder.eval(), config


def images(model: ModelConfig) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, model.in_chans, model.image_size, model.image_size, generator=generator)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_what_was_saved_is_loaded(tmp_path: Path, model: ModelConfig) -> None:
    encoder, config = exported(tmp_path / "made" / "here", model)
    folder = tmp_path / "made" / "here"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    loaded = load_encoder(folder)
    assert loaded.config == config
    assert not loaded.encoder.training
    x = images(model)
    assert torch.allclose(loaded.encoder(x), encoder(x), rtol=1e-4, atol=1e-5)
    assert loaded.encoder(x).shape == (3, config.num_features)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_the_cards_code_gives_the_same_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: ModelConfig
) -> None:
    encoder, config = exported(tmp_path, model)
    card = (tmp_path / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    assert "ssl_core" not in code
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    x = images(model)
    assert torch.allclose(names["model"](x), encoder(x), rtol=1e-4, atol=1e-5)
    assert f"Output: {config.num_features} features" in card
    assert f"float [N, {model.in_chans}, {model.image_size}, {model.image_size}]" in card


def test_weights_are_float32_whatever_they_were_trained_in(tmp_path: Path) -> None:
    encoder = trained(MODELS["cifar stem"]).double()
    config = ExportConfig(model=MODELS["cifar stem"], mean=(0.5,) * 3, std=(0.2,) * 3, num_features=16)
    save_encoder(tmp_path, encoder, config)
    assert {one.dtype for one in load_file(tmp_path / "encoder.safetensors").values()} == {torch.float32}


def test_the_config_says_how_to_build_and_what_to_feed(tmp_path: Path) -> None:
    exported(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "format": 1,
        "timm": {"name": "resnet18", "arguments": NARROW},
        "stem": "cifar",
        "input": {
            "size": 16,
            "channels": 3,
            "mean": pytest.approx([0.3, 0.4, 0.5]),
            "std": pytest.approx([0.3, 0.4, 0.5]),
        },
        "num_features": 16,
    }


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 128
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flip", "cut", "unlink"])
def test_no_byte_may_change(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    exported(tmp_path)
    verify_export(tmp_path)
    damage(tmp_path / name)
    if name == "checksums.json" and damage is cut:
        verify_export(tmp_path)  # the last byte is the end of its line
        return
    for check in (verify_export, load_encoder):
        with pytest.raises(UserError, match=str(tmp_path)) as refused:
            check(tmp_path)
        assert "\n" not in str(refused.value)


def test_a_folder_that_was_not_finished_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, config = exported(tmp_path)
    digest = export_digest(tmp_path)

    def full(folder: Path, card: str) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("ssl_core.export.publish_card", full)
    with pytest.raises(OSError, match="no space"):
        save_encoder(tmp_path, encoder, config)
    with pytest.raises(UserError, match=r"no checksums\.json"):
        load_encoder(tmp_path)
    monkeypatch.undo()
    save_encoder(tmp_path, encoder, config)
    assert export_digest(tmp_path) == digest


def test_the_digest_names_the_content(tmp_path: Path) -> None:
    _, config = exported(tmp_path / "a")
    exported(tmp_path / "b")
    assert export_digest(tmp_path / "a") == export_digest(tmp_path / "b")
    publish_card(tmp_path / "b", model_card(config, title="Another title", facts=["| probe | 61 % |"]))
    assert export_digest(tmp_path / "a") != export_digest(tmp_path / "b")
    card = (tmp_path / "b" / "README.md").read_text()
    assert card.startswith("# Another title\n")
    assert card.endswith("| probe | 61 % |\n")
    load_encoder(tmp_path / "b")


@pytest.mark.parametrize("folder", ["nothing", "empty"])
def test_what_is_no_export_is_said(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match={"nothing": "does not exist", "empty": "is not an exported encoder"}[folder]):
        load_encoder(tmp_path / folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "has format 2, this version reads 1"),
        ({"timm": {"name": "resnet81", "arguments": {}}}, "resnet81 is not a timm model"),
        ({"timm": {"name": "resnet18", "arguments": {"checkpoint_path": "x.pth"}}}, "checkpoint_path"),
        ({"timm": {"name": "resnet34", "arguments": NARROW}, "stem": "native"}, "do not fit the model"),
        ({"timm": 3}, "cannot be read"),
        ({"input": {}}, "cannot be read"),
    ],
)
def test_another_config_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    exported(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=says) as refused:
        load_encoder(tmp_path, verify=False)
    assert "\n" not in str(refused.value)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    encoder, _ = exported(tmp_path)
    tensors = load_file(tmp_path / "encoder.safetensors")
    for damaged in ({"x": torch.zeros(1), **tensors}, {k: v for k, v in tensors.items() if k != "conv1.weight"}):
        with pytest.raises(UserError, match=r"the weights of here do not fit the model: .*(x|conv1\.weight)"):
            load_weights(encoder, damaged, where="here")
    save_file({**tensors, "conv1.weight": torch.zeros(8, 3, 7, 7)}, tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match=r"conv1\.weight"):
        load_encoder(tmp_path, verify=False)


def test_a_stem_that_the_model_cannot_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.stem=cifar"):
        build_encoder(replace(MODELS["vit"], stem="cifar"))
