"""The command makes, checks and shows data sets, and says in one line what is wrong with what it was given."""

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import pytest
from PIL import Image

from cluster.object_store import ObjectStore
from pipelines.pack import main
from ssl_core.data.manifest import load_manifest
from ssl_core.data.reader import Reader
from ssl_core.data.staging import FinishedShard, StagedPart
from ssl_core.errors import Resumable, UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_PIPELINES_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two class folders of four images each."""
    for number in range(8):
        path = tmp_path / "images" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 20, 0, 0)).save(path)
    return tmp_path / "images"


Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; what it printed."""

    def run(*words: str) -> str:
        main(list(words))
        return capsys.readouterr().out

    return run


def test_images_become_a_data_set_that_can_be_checked_and_shown(images: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    said = run(f"source={images}", f"output={out}", "shard_samples=3")
    assert "samples     8" in said
    assert "labels      8 in 2 classes" in said
    assert said.splitlines()[-1] == (
        f"next: python -m pipelines.pretrain method=simclr model=resnet_micro data.train={out} name=my-run"
    )
    assert "3 shards" in run(f"verify={out}")
    shown = run(f"show={out}").splitlines()
    assert "  shard-00002.tar                          2          10,240" in shown
    assert "  dog                                      4" in shown
    assert f"  digest      {load_manifest(out).digest}" in shown


def test_digits_are_split_by_default(tmp_path: Path, run: Run) -> None:
    said = run("source=digits", f"output={tmp_path / 'digits'}")
    train, val = (load_manifest(tmp_path / "digits" / part) for part in ("train", "val"))
    assert (train.num_samples + val.num_samples, train.channels, train.labelled) == (1797, 1, True)
    assert val.num_samples == pytest.approx(0.2 * 1797, abs=5)
    assert f"data.train={tmp_path / 'digits/train'} data.val={tmp_path / 'digits/val'}" in said


def test_existing_shards_are_described_in_place_or_elsewhere(tmp_path: Path, run: Run) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    stream = BytesIO()
    Image.new("L", (300, 200)).save(stream, "JPEG")
    with tarfile.open(shards / "0.tar", "w") as tar:
        for name, data in (
            ("a.jpg", stream.getvalue()),
            ("a.json", b"{}"),
            ("a.jpg", b""),
            ("b.jpg", b"no"),
            ("c.cls", b"1"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    said = run(f"index={shards}", f"output={tmp_path / 'index'}")
    assert not (shards / "manifest.json").exists()
    assert load_manifest(tmp_path / "index").root == str(shards)
    assert f"shards in   {shards}" in said
    assert "ignored, being neither image nor label: 1 .json" in said
    assert "1 keys come again in their shard, the first of each stands, such as 0.tar: a" in said
    assert "1 images are unreadable by their headers, such as 0.tar: b: " in said
    assert "1 labels have no image" in said
    assert "model=resnet50" in said
    run(f"index={shards}", f"output={tmp_path / 'index'}")  # again: the same shards
    run(f"index={shards}")
    assert load_manifest(shards).digest == load_manifest(tmp_path / "index").digest
    shutil.copytree(shards, tmp_path / "others")
    with pytest.raises(UserError, match=f"already describes the shards in {shards}"):
        run(f"index={tmp_path / 'others'}", f"output={tmp_path / 'index'}")


def test_verify_hashes_every_byte_again(images: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    run(f"source={images}", f"output={out}", "shard_samples=3")
    path = out / "shard-00001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"1 of 3 shards .* first shard-00001\.tar"):
        run(f"verify={out}")


def test_validation_images_that_are_in_the_training_set_are_named(images: Path, tmp_path: Path, run: Run) -> None:
    train, val = tmp_path / "train", tmp_path / "val"
    run(f"source={images}", f"output={train}", "shard_samples=3")
    for number in range(8):
        Image.new("RGB", (8, 8), (0, number * 20, 9)).save(images / ("cat", "dog")[number % 2] / f"{number}.png")
    shutil.copy(images / "dog" / "7.png", images / "cat" / "again.png")
    run(f"source={images}", f"output={val}")

    def findings(one: Path, other: Path) -> list[str]:
        said = run(f"verify={one}", f"against={other}").splitlines()
        verified, *lines = [line for line in said if not line.startswith(("hashing", "comparing"))]
        assert verified.endswith("all as the manifest says")
        return lines

    assert findings(train, val) == [f"none of the 9 images of {val} is in {train} too"]
    *lines, last = findings(train, train)  # with itself: every image, by its name
    keys = [Reader(load_manifest(train)).key(position) for position in range(8)]
    assert lines == [
        f"same bytes    1.000  val shard-0000{n // 3}.tar {key}  train shard-0000{n // 3}.tar {key}"
        for n, key in enumerate(keys)
    ]
    assert last.startswith(f"8 of 8 images (100.00%) of {train} are in {train} too: 8 same bytes. ")


def test_what_is_shown_has_sizes_and_a_contact_sheet(images: Path, tmp_path: Path, run: Run) -> None:
    Image.new("RGB", (300, 20), (0, 200, 0)).save(images / "cat" / "wide.png")
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    run(f"source={images}", f"output={out}")
    said = run(f"show={out}", f"sheet={sheet}").splitlines()
    sizes = {line[:26].strip(): line[26:].split()[:2] for line in said}
    assert sizes["smallest"] == sizes["median"] == ["8", "8"]
    assert sizes["largest"] == ["300", "20"]
    assert said[-1] == f"9 images are on {sheet}"
    with Image.open(sheet) as image:
        assert image.size == (8 * 120 + 8, 2 * 136 + 8)
        colours = {colour for _, colour in image.getcolors(100_000) or []}
    assert {(0, 200, 0), (140, 0, 0), (20, 0, 0)} <= colours
    before = sheet.read_bytes()
    run(f"show={out}", f"sheet={sheet}")
    assert sheet.read_bytes() == before
    run(f"show={out}", f"sheet={sheet}", "seed=1")
    assert sheet.read_bytes() != before
    assert [path.name for path in tmp_path.glob(".*")] == []
    with pytest.raises(UserError, match=r"cannot write sheet=.*/nowhere/sheet\.png"):
        run(f"show={out}", f"sheet={tmp_path / 'nowhere' / 'sheet.png'}")


def test_an_image_that_does_not_decode_is_a_plain_tile(tmp_path: Path, run: Run) -> None:
    (tmp_path / "shards").mkdir()
    stream = BytesIO()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(stream, "PNG")
    with tarfile.open(tmp_path / "shards/0.tar", "w") as tar:
        for name, data in (("a.png", stream.getvalue()), ("b.png", b"no")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    run(f"index={tmp_path / 'shards'}")
    said = run(f"show={tmp_path / 'shards'}", f"sheet={tmp_path / 'sheet.png'}")
    assert "of 1 images" in said
    with Image.open(tmp_path / "sheet.png") as image:
        assert {(200, 0, 0), (225, 225, 225)} <= {colour for _, colour in image.getcolors(100_000) or []}


def test_names_that_are_no_text_are_shown_as_escapes(tmp_path: Path, run: Run) -> None:
    (tmp_path / "shards").mkdir()
    stream = BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    with tarfile.open(tmp_path / "shards/0.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("a\udcff\n\x1b[31m.png", "a\udcff\n\x1b[31m.png", "b.\udcfe", "größe.png"):
            info = tarfile.TarInfo(name)
            info.size = len(stream.getvalue())
            tar.addfile(info, BytesIO(stream.getvalue()))
    said = run(f"index={tmp_path / 'shards'}")
    assert said.encode()
    assert r"such as 0.tar: a\udcff\n\x1b[31m" in said
    assert r"1 .\udcfe" in said
    run(f"show={tmp_path / 'shards'}", f"sheet={tmp_path / 'sheet.png'}")


def test_what_was_left_out_is_said(images: Path, tmp_path: Path, run: Run) -> None:
    (images / "cat/0.png").write_bytes(b"no image")
    said = run(f"source={images}", f"output={tmp_path / 'out'}")
    assert f"1 images were left out, see {tmp_path / 'out/skipped.txt'}, such as {images / 'cat/0.png'}: " in said


def test_images_are_stored_smaller(images: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    assert "images      4 x 4 pixels" in run(f"source={images}", f"output={out}", "resize=4", "quality=80")
    with tarfile.open(out / "shard-00000.tar") as tar:
        assert {name.partition(".")[2] for name in tar.getnames()} == {"jpg", "cls"}


def test_what_was_finished_before_is_said(
    images: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = f"source={images}", f"output={tmp_path / 'out'}", "shard_samples=1", "workers=1"

    def full(self: StagedPart, shard: FinishedShard) -> None:
        if shard.scan.info.name == "shard-00003.tar":
            raise OSError(28, "No space left on device")
        finish(self, shard)

    finish = StagedPart.finish
    monkeypatch.setattr(StagedPart, "finish", full)
    with pytest.raises(Resumable, match="free some space, then the same command continues"):
        run(*words)
    monkeypatch.setattr(StagedPart, "finish", finish)
    assert "3 of the shards were finished before, by the same command" in run(*words)


@pytest.mark.s3
def test_a_bucket_takes_the_place_of_every_folder(
    images: Path, tmp_path: Path, run: Run, s3_store: ObjectStore
) -> None:
    client: Any = boto3.client("s3", **s3_store.client_arguments)
    client.create_bucket(Bucket="command")
    for path in images.rglob("*.png"):
        client.upload_file(str(path), "command", f"photos/{path.relative_to(images).as_posix()}")
    said = run("source=s3://command/photos", "output=s3://command/set", "shard_samples=3")
    assert "s3://command/set" in said.splitlines()
    assert "labels      8 in 2 classes" in said
    assert said.splitlines()[-1].endswith("data.train=s3://command/set name=my-run")
    assert "3 shards" in run("verify=s3://command/set")
    digest = load_manifest("s3://command/set").digest
    assert f"digest      {digest}" in run("show=s3://command/set")
    client.put_object(Bucket="command", Key="set/classes.txt", Body=b"cat\ndog\n")
    said = run("index=s3://command/set", f"output={tmp_path / 'index'}")
    assert "shards in   s3://command/set" in said
    manifest = load_manifest(tmp_path / "index")
    assert (manifest.root, manifest.digest) == ("s3://command/set", digest)
    run("index=s3://command/set", "output=s3://command/elsewhere")
    assert load_manifest("s3://command/elsewhere") == manifest
    client.delete_object(Bucket="command", Key="set/manifest.json")
    assert "shards in" not in run("index=s3://command/set")
    assert load_manifest("s3://command/set").digest == digest
    with pytest.raises(UserError, match="already describes the shards in s3://command/set: choose another folder"):
        run("index=s3://command/others", "output=s3://command/elsewhere")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of source=, index=, verify= and show=, not none"),
        (["source=a", "index=b"], "not source and index"),
        (["source={images}"], "output= is missing"),
        (["source={tmp}/nowhere", "output={tmp}/o"], "nowhere: no such folder"),
        (["source='pipe:cat /etc/passwd'", "output={tmp}/o"], "pipe:"),
        (["index=pipe:ls"], "pipe:"),
        (["verify={tmp}/nowhere"], "nowhere: no such folder"),
        (["show={images}"], "no manifest"),
        (["source={images}", "output=s3://bucket/x"], "s3://bucket/x"),
        (["source={images}", "output={tmp}/o", "shard_samples=0"], "shard_samples=0"),
        (["source={images}", "output={tmp}/o", "val_fraction=1"], "val_fraction=1"),
        (["source={images}", "output={tmp}/o", "workers=0"], "workers=0"),
        (["source={images}", "output={tmp}/o", "labels=all"], "labels=all"),
        (["source={images}", "output={tmp}/o", "resize=0"], "resize=0"),
        (["source={images}", "output={tmp}/o", "quality=101"], "quality=101"),
        (["source={images}", "output={tmp}/o", "shards=3"], "unknown key shards"),
        (["show={images}", "against={images}"], "against= goes with verify="),
        (["verify={images}", "sheet=a.png"], "sheet= goes with show="),
        (["show={images}", "sheet=a.gif"], "sheet=a.gif: name a file that ends in .png"),
        (["index={images}", "output=s3://bucket/x"], "a manifest in a bucket is for shards in a bucket"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    words: list[str], message: str, images: Path, tmp_path: Path, run: Run
) -> None:
    with pytest.raises(UserError) as caught:
        run(*(word.format(images=images, tmp=tmp_path) for word in words))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_as_a_process(images: Path, tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str, set[str]]:
        command = [sys.executable, "-X", "importtime", "-m", "pipelines.pack", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stderr.splitlines()
        imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
        said = done.stdout + "\n".join(line for line in lines if not line.startswith("import time:"))
        return done.returncode, said, imported

    code, said, imported = run("--help")
    assert code == 0
    assert "shard_samples: 1000" in said
    assert not imported & {"numpy", "torch", "hydra"}
    code, said, imported = run(f"source={tmp_path / 'nowhere'}", f"output={tmp_path / 'out'}")
    assert code == 2
    assert said == f"pack: source={tmp_path / 'nowhere'}: no such folder or .csv file"
    assert "torch" not in imported
    code, said, imported = run(f"source={images}", f"output={tmp_path / 'out'}")
    assert code == 0
    assert "torch" in imported  # by way of webdataset, which writes the shards
    code, said, imported = run(f"verify={tmp_path / 'out'}")
    assert code == 0
    assert "torch" not in imported
