"""Tracking and registry on an MLflow server with a database that keeps artifacts in a bucket: what teams run."""

import base64
import io
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import RunMaker, write_probe
from numpy.typing import NDArray
from PIL import Image

from benchmarks.registry_race import Race, run_race, summary
from cluster.mlflow_server import MlflowServer
from cluster.object_store import ObjectStore, free_ports
from pipelines import embed, pack
from pipelines.config import compose
from pipelines.mlflow_connection import connect, process_wide, without_passwords
from pipelines.model_versions import versions
from pipelines.plan import make_plan, with_absolute_paths
from pipelines.provenance import environment
from pipelines.registry import pull_model, register_run
from pipelines.run_facts import log_facts
from pipelines.run_folder import RunFolder
from pipelines.tracking import Tracker, TrackingConfig
from ssl_core.errors import UserError
from ssl_core.export import load_encoder

pytestmark = [pytest.mark.slow, pytest.mark.s3]
ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "hunter2-hunter2"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    pack.main(["source=digits", f"output={folder}"])
    return folder


def objects(store: ObjectStore) -> dict[str, bytes]:
    """Everything in the server's bucket."""
    client: Any = boto3.client("s3", **store.client_arguments)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="mlflow")
    keys = [one["Key"] for page in pages for one in page.get("Contents", [])]
    return {key: client.get_object(Bucket="mlflow", Key=key)["Body"].read() for key in keys}


def test_all_that_is_known_of_a_run_is_on_its_page_and_no_password(
    mlflow_on_s3: MlflowServer, endpoint: ObjectStore, digits: Path, tmp_path: Path
) -> None:
    uri = mlflow_on_s3.uri.replace("http://", f"http://somebody:{PASSWORD}@")
    words = ["method=mae", "model=vit_micro", "model.image_size=16", "model.in_chans=1", "model.arguments.patch_size=8"]
    words += [f"data.train={digits}/train", f"data.val={digits}/val", f"tracking.uri={uri}", "train.workers=1"]
    values = with_absolute_paths(compose("pretrain", words))
    plan = make_plan(values)
    config = without_passwords(values)
    run = RunFolder.open(str(tmp_path), "served", identity=plan.identity, config=config)
    tracker = Tracker.open(
        uri, config=TrackingConfig(experiment="served"), run_name="served", run_folder=run.path, say=print
    )
    run.update(mlflow_run=tracker.run_id, environment=environment())
    log_facts(tracker, run.record, plan)
    log_facts(tracker, run.record, plan)  # as a resumed run does
    (run.path / "metrics").mkdir()
    line = json.dumps({"step": 1, "time": 1000.0, "loss": 0.5})
    (run.path / "metrics" / "attempt-0001.jsonl").write_text(f"{line}\n")
    tracker.log_results({"probe.linear": 0.9}, step=1)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "views.png")
    tracker.log_artifact(tmp_path / "views.png", "pictures")
    assert tracker.finish("FINISHED")

    client = connect(mlflow_on_s3.uri)
    found = client.get_run(tracker.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["method.mask_ratio"] == "0.75"
    assert found.data.params["method.encoder_mask_token"] == "False"  # a "token", and no secret
    assert found.data.params["tracking.uri"] == mlflow_on_s3.uri
    assert found.data.metrics == {"loss": 0.5, "logged_step": 1.0, "probe.linear": 0.9}
    tags = found.data.tags
    assert tags["manifest"] == plan.train_data.digest
    assert tags["mlflow.source.name"] == "pipelines.pretrain"
    code = environment()["code"]
    if code is not None:  # a checkout
        assert (tags["mlflow.source.git.commit"], tags["mlflow.source.git.dirty"]) == (
            code["commit"],
            str(code["dirty"]).lower(),
        )
    assert found.inputs is not None
    data = {one.tags[0].value: one.dataset for one in found.inputs.dataset_inputs}
    assert data.keys() == {"train, probe-train", "probe-val"}
    assert data["train, probe-train"].digest == plan.train_data.digest[:36]

    place = str(found.info.artifact_uri).removeprefix("mlflow-artifacts:/")
    kept = {key.partition(f"{place}/")[2]: content for key, content in objects(endpoint).items() if place in key}
    assert kept.keys() >= {"config.yaml", "environment/attempt-0001.json", "pictures/views.png"}
    assert {name for name in kept if name.startswith("manifests/")} == {
        f"manifests/{name}.json" for name in ("train", "probe-train", "probe-val")
    }
    assert json.loads(kept["manifests/train.json"])["digest"] == plan.train_data.digest
    assert json.loads(kept["environment/attempt-0001.json"])["packages"].keys() >= {"torch", "ray"}
    assert b"mask_ratio: 0.75" in kept["config.yaml"]

    everything = {**objects(endpoint), "database": (mlflow_on_s3.server.log.parent / "mlflow.db").read_bytes()}
    everything |= {path.name: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert [name for name, content in everything.items() if PASSWORD.encode() in content] == []


def test_a_version_has_all_that_the_registrys_page_shows(
    mlflow_on_s3: MlflowServer, runs: RunMaker, tmp_path: Path
) -> None:
    uri = mlflow_on_s3.uri
    run = runs("shown", linear=0.5)
    assert register_run(run, "shown", uri).alias == "champion"
    client = connect(uri)
    version = client.get_model_version_by_alias("shown", "champion")
    assert version.tags["probe.linear"] == "0.5"
    assert version.tags["manifest"] == "0" * 64
    card = (run / "export" / "README.md").read_text()
    assert version.description == card
    assert "| pretrained " in card
    assert "50.0 ± 1.0" in card

    from mlflow.models import get_model_info

    with process_wide(uri):
        info = get_model_info("models:/shown@champion")
    assert info.signature is not None
    assert info.signature.inputs.input_names() == ["image"]
    assert info.saved_input_example_info is not None
    write_probe(run, linear=0.6, error=0.01, data="A")
    register_run(run, "shown", uri)
    assert client.get_model_version("shown", "1").tags["probe.linear"] == "0.6"
    pulled = pull_model("models:/shown@champion", tmp_path / "pulled", uri)
    assert (pulled / "README.md").read_text() == card


def test_a_flipped_byte_in_the_bucket_is_one_clear_line(
    mlflow_on_s3: MlflowServer, endpoint: ObjectStore, runs: RunMaker, tmp_path: Path
) -> None:
    register_run(runs("flipped", linear=0.5), "flipped", mlflow_on_s3.uri)
    (version,) = versions(connect(mlflow_on_s3.uri), "flipped")
    (key,) = [key for key in objects(endpoint) if str(version.model_id) in key and key.endswith("encoder.safetensors")]
    client: Any = boto3.client("s3", **endpoint.client_arguments)
    content = bytearray(client.get_object(Bucket="mlflow", Key=key)["Body"].read())
    content[-1] ^= 1
    client.put_object(Bucket="mlflow", Key=key, Body=bytes(content))
    command = [
        sys.executable,
        "-m",
        "pipelines.pull",
        "model=models:/flipped/1",
        "to=here",
        f"tracking.uri={mlflow_on_s3.uri}",
    ]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert (
        line == "pull: models:/flipped/1: the files in the registry are damaged, they differ from what was registered"
    )
    assert [path.name for path in tmp_path.iterdir() if path.name != "runs"] == []


def test_pulled_for_timm_and_for_onnxruntime(mlflow_on_s3: MlflowServer, runs: RunMaker, tmp_path: Path) -> None:
    register_run(runs("forms", linear=0.5), "forms", mlflow_on_s3.uri)
    with pytest.raises(UserError, match="no stem cifar"):
        pull_model("models:/forms/1", tmp_path / "timm", mlflow_on_s3.uri, form="timm")
    folder = pull_model("models:/forms/1", tmp_path / "onnx", mlflow_on_s3.uri, form="onnx")
    record = json.loads((folder / "pulled.json").read_text())
    assert (record["version"], record["format"], sorted(record["files"])) == (
        "models:/forms/1",
        "onnx",
        ["README.md", "encoder.onnx"],
    )
    when = (folder / "encoder.onnx").stat().st_mtime_ns
    assert pull_model("models:/forms/1", folder, mlflow_on_s3.uri, form="onnx") == folder
    assert (folder / "encoder.onnx").stat().st_mtime_ns == when
    (folder / "README.md").write_text("changed")
    for form in ("onnx", "safetensors"):
        with pytest.raises(UserError, match=f"exists and is not models:/forms/1 as format={form}"):
            pull_model("models:/forms/1", folder, mlflow_on_s3.uri, form=form)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx", "runs"]


def test_two_registrations_at_once_leave_one_champion_the_better_one(
    mlflow_on_s3: MlflowServer, tmp_path: Path
) -> None:
    """The short form of benchmarks/registry_race.py."""
    race = Race(uri=mlflow_on_s3.uri, storage=str(tmp_path), rounds=5, pause=2.0, blind=False, seed=0)
    rounds = run_race(race)
    assert len(rounds) == 5
    assert all(one.right for one in rounds), summary(rounds)


IMAGES = RNG.integers(0, 256, (3, 20, 28, 3), dtype=np.uint8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three PNG files."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, image in enumerate(IMAGES):
        (folder / f"{number}.png").write_bytes(png(image))
    return folder


def png(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def embeddings(path: Path) -> NDArray[np.float32]:
    return np.stack(pq.read_table(path)["embedding"].to_numpy())


@contextmanager
def served(model: str, registry: str, folder: Path) -> Generator[str]:
    """`mlflow models serve`, as a process of its own; where it takes images."""
    (port,) = free_ports(1)
    words = ["-m", model, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow starts `uvicorn` by its name
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registry, "PYTHONPATH": str(ROOT), "PATH": path}
    environment |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", *words],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/ping"):
            assert process.poll() is None, (folder / "serve.log").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "serve.log").read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True


def posted(url: str, body: Any) -> NDArray[np.float32]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return np.asarray(json.load(answer)["predictions"], np.float32)


def test_a_served_model_gives_what_embed_gives_and_unpickles_nothing(
    mlflow_on_s3: MlflowServer, runs: RunMaker, pictures: Path, tmp_path: Path
) -> None:
    uri = mlflow_on_s3.uri
    register_run(runs("served", linear=0.5), "served", uri)
    embed.main(
        ["model=models:/served@champion", f"data={pictures}", f"output={tmp_path}/e.parquet", f"tracking.uri={uri}"]
    )
    expected = embeddings(tmp_path / "e.parquet")
    texts = [base64.b64encode(png(image)).decode() for image in IMAGES]
    with served("models:/served@champion", uri, tmp_path) as url:
        by_form = {
            "bytes": posted(url, {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}}),
            "named": posted(url, {"inputs": {"image": texts}}),
            "arrays": posted(url, {"inputs": {"image": IMAGES.tolist()}}),
        }
        with pytest.raises(urllib.error.HTTPError) as refused:
            posted(url, {"inputs": {"image": [base64.b64encode(b"no image").decode()]}})
        assert refused.value.code == 400
    for form, found in by_form.items():
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7, err_msg=form)


def test_pulled_by_the_wheel_alone_it_embeds_to_the_same_bits(
    mlflow_on_s3: MlflowServer, runs: RunMaker, pictures: Path, wheel: Path, tmp_path: Path
) -> None:
    """ "Another machine": the wheel's files, another folder and home, the registry's address; no checkout, no keys."""
    run = runs("away", linear=0.5)
    embed.main([f"model={run}", f"data={pictures}", f"output={tmp_path}/before.parquet", "threads=1"])
    register_run(run, "away", mlflow_on_s3.uri)
    elsewhere = tmp_path / "elsewhere"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(elsewhere / "site")
    words = ["model=models:/away@champion", f"data={pictures}", "output=after.parquet", "threads=1"]
    run_elsewhere(elsewhere, mlflow_on_s3.uri, ["-m", "pipelines.pull", words[0], "to=encoder"])
    run_elsewhere(elsewhere, mlflow_on_s3.uri, ["-m", "pipelines.embed", "model=encoder", *words[1:]])
    assert np.array_equal(embeddings(elsewhere / "after.parquet"), embeddings(tmp_path / "before.parquet"))
    assert load_encoder(elsewhere / "encoder").config == load_encoder(run / "export").config


def run_elsewhere(folder: Path, registry: str, words: Sequence[str]) -> None:
    """With the libraries of this interpreter, but neither its editable install nor this environment."""
    import sysconfig

    (folder / "home").mkdir(exist_ok=True)
    libraries = [str(folder / "site"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    clean = {"PATH": os.defpath, "HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join(libraries)}
    clean |= {"MLFLOW_TRACKING_URI": registry, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-S", "-P", *words]
    done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
