"""The registered flavour: every form of images gives the same embeddings; loading runs no pickle and no code."""

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RunMaker, export_tiny
from numpy.typing import NDArray
from PIL import Image

from pipelines.mlflow_connection import connect, prepare_environment
from pipelines.registry import register_run
from pipelines.serving import EmbeddingModel, images_in, requirements, save_flavour
from ssl_core.export import load_encoder

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


def png(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


TEXTS = [base64.b64encode(png(image)).decode() for image in IMAGES]
FORMS: dict[str, Any] = {
    "uint8 channels last": IMAGES,
    "uint8 channels first": IMAGES.transpose(0, 3, 1, 2),
    "float": IMAGES / np.float32(255),
    "float64 channels first": IMAGES.transpose(0, 3, 1, 2) / 255.0,
    "base64 column": pd.DataFrame({"image": TEXTS}),
    "bytes column": pd.DataFrame({"image": [png(image) for image in IMAGES]}),
    "base64 array": np.array(TEXTS),
    "named array": {"image": IMAGES},
}
BODIES: dict[str, Any] = {
    "split": {"dataframe_split": {"columns": ["image"], "data": [[text] for text in TEXTS]}},
    "records": {"dataframe_records": [{"image": text} for text in TEXTS]},
    "inputs": {"inputs": {"image": TEXTS}},
    "unnamed inputs": {"inputs": TEXTS},
    "numbers": {"inputs": IMAGES.tolist()},
}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving") / "export"
    export_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def expected(export: Path) -> NDArray[np.float32]:
    """By hand: normalise, then the encoder."""
    x = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return load_encoder(export).encoder((x - 0.5) / 0.2).numpy()


@pytest.fixture(scope="module")
def loaded(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The model as `mlflow.pyfunc.load_model` gives it, with pickle refused."""
    prepare_environment()
    import mlflow.pyfunc
    from mlflow.models import Model

    folder = tmp_path_factory.mktemp("flavour") / "model"
    save_flavour(folder, export, Model())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "False")
        for module in ("pickle", "cloudpickle"):
            for function in ("load", "loads"):
                patch.setattr(f"{module}.{function}", _refuse)
        patch.setattr(torch, "load", _refuse)
        return mlflow.pyfunc.load_model(str(folder))


def _refuse(*arguments: object, **options: object) -> None:
    del arguments, options
    raise AssertionError("nothing is unpickled")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_images_gives_the_same_embeddings(form: str, loaded: Any, expected: NDArray[np.float32]) -> None:
    found = loaded.predict(FORMS[form])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("body", BODIES)
def test_every_body_of_a_request_gives_the_same_embeddings(
    body: str, loaded: Any, expected: NDArray[np.float32]
) -> None:
    from mlflow.pyfunc.scoring_server import _parse_json_data  # pyright: ignore[reportPrivateUsage] (what MLflow's server itself calls)

    parse: Any = _parse_json_data
    data = parse(json.dumps(BODIES[body]), loaded.metadata, loaded.metadata.get_input_schema()).data
    np.testing.assert_allclose(loaded.predict(data), expected, rtol=1e-4, atol=1e-5)


def test_the_models_own_example_works(loaded: Any) -> None:
    assert loaded.predict(loaded.input_example).shape == (1, 8)


def test_images_of_any_size_are_resized_and_batches_do_not_matter(export: Path) -> None:
    large = pd.DataFrame({"image": [png(RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)), png(IMAGES[0])]})
    whole = EmbeddingModel(load_encoder(export)).predict(large)
    assert whole.shape == (2, 8)
    parts = EmbeddingModel(load_encoder(export), batch_size=1).predict(large)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((2, 16, 16), np.uint8), "expected \\[H, W, 3\\]"),
        (np.zeros((2, 16, 16, 4), np.uint8), "expected \\[H, W, 3\\]"),
        (np.full((1, 16, 16, 3), 300), "out of range"),
        (np.full((1, 16, 16, 3), np.nan), "out of range"),
        (np.full((1, 16, 16, 3), -1.0), "out of range"),
        (pd.DataFrame({"image": ["no base64!"]}), "not an image"),
        (pd.DataFrame({"image": [base64.b64encode(b"no image").decode()]}), "not an image"),
    ],
)
def test_what_is_no_batch_of_images_is_refused_in_words(data: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        images_in(data, channels=3)


def test_floats_become_the_pixels_they_came_from() -> None:
    almost = np.nextafter(np.arange(256, dtype=np.float32) / 255, 0)
    (ramp,) = images_in(almost.reshape(1, 16, 16, 1), channels=1)
    assert ramp.ravel().tolist() == list(range(256))


def test_requirements_name_this_distribution_and_plain_versions() -> None:
    lines = requirements()
    assert lines[0].startswith("ssl-pipelines")
    assert any(line.startswith("torch==") for line in lines)
    assert not any("+" in line for line in lines)


@pytest.mark.slow
def test_a_registered_model_loads_by_its_alias(store: str, runs: RunMaker, tmp_path: Path) -> None:
    """In a process of its own, as a user would, away from the checkout's folder."""
    import subprocess

    register_run(runs("a", linear=0.5), "m", store)
    root = Path(__file__).resolve().parents[2]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\n"
        "import mlflow, numpy as np\n"
        f"mlflow.set_tracking_uri({store!r})\n"
        "model = mlflow.pyfunc.load_model('models:/m@champion')\n"
        "print(model.predict(np.zeros((2, 16, 16, 3), np.uint8)).shape)"
    )
    environment = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "False", "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "(2, 8)", done.stderr[-2000:]
    assert connect(store).get_model_version_by_alias("m", "champion").version in (1, "1")
