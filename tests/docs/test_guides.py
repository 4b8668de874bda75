"""Every command of the guides is run, in its order, on small images; and what such a run leaves has no secret in it.

A page joins by a line in GUIDES for each of its sections that has commands. A block whose first line is a comment that
begins with "not run by" is left out.
"""

import base64
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import cv2
import numpy as np
import pytest
from sklearn.datasets import load_digits

from cluster.mlflow_server import mlflow_server
from cluster.object_store import ObjectStore
from cluster.process_tree import process_tree
from tests.cluster.test_local import listening, on_loopback
from tests.docs.guide_blocks import blocks_of, module_of

ROOT = Path(__file__).resolve().parents[2]
BUCKET = "my-bucket"
SMALL = [
    *("train.steps=4", "train.epochs=1", "train.global_batch=64", "train.threads=1", "probe.every=null"),
    *("model.arguments.channels=[8,8,16,16]", "model.image_size=16", "data.lanes=4"),
]
PATIENCE_SECONDS = 400


@dataclass(frozen=True, kw_only=True)
class Guide:
    """A section of a page.

    Attributes:
        page: below `docs`.
        heading: of the section.
        prepare: makes what the section takes for given in a folder, which is where its commands run.
        more: words that the test adds to a command to make it small, by module.
    """

    page: str
    heading: str
    prepare: Callable[[Path], None]
    more: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    @property
    def commands(self) -> list[list[str]]:
        """Those that are run, with the added words."""
        found: list[list[str]] = []
        for block in blocks_of(ROOT / "docs" / self.page):
            if block.heading == self.heading and block.run:
                found += [[*command, *self.more.get(module_of(command) or "", ())] for command in block.commands]
        return found


def images(folder: Path, count: int, *, first: int = 0, classes: bool = True) -> None:
    """Digits as 32-pixel images, in class folders or flat."""
    pixels, labels = load_digits(return_X_y=True)
    for number in range(first, first + count):
        place = folder / str(labels[number]) if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        image = cv2.resize((pixels[number].reshape(8, 8) * 15.9375).astype(np.uint8), (32, 32))
        cv2.imwrite(str(place / f"{number:04d}.png"), cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))


def photos(folder: Path) -> None:
    images(folder / "photos", 200)


def nothing(folder: Path) -> None:
    """Its images are in the bucket."""


def two_sets(folder: Path) -> None:
    images(folder / "unlabelled", 200, classes=False)
    images(folder / "labelled", 100, first=200)


FOLDER = Guide(
    page="guides.md",
    heading="Your own images in a folder",
    prepare=photos,
    more={"pipelines.pretrain": SMALL},
)
IN_S3 = Guide(page="guides.md", heading="Images in S3", prepare=nothing)
UNLABELLED = Guide(
    page="guides.md",
    heading="Unlabelled images, and a small labelled set to measure with",
    prepare=two_sets,
    more={"pipelines.pretrain": SMALL},
)
GUIDES = [FOLDER, UNLABELLED, IN_S3]


@dataclass
class Said:
    """What the commands of a guide said, one text a command; the sockets on which they listened, with their process."""

    texts: list[str] = field(default_factory=list[str])
    sockets: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])
    environments: set[bytes] = field(default_factory=set[bytes])


def follow(guide: Guide, folder: Path, environment: Mapping[str, str], more: Mapping[str, Sequence[str]]) -> Said:
    """Run a guide's commands; the first that fails fails the test."""
    guide.prepare(folder)
    said = Said()
    for command in guide.commands:
        words = [sys.executable if command[0] == "python" else command[0], *command[1:]]
        words += more.get(module_of(command) or "", ())
        log = folder.parent / f"{folder.name}-{len(said.texts)}.log"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                words, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            ) as process,
        ):
            watch(process, said)
        said.texts.append(log.read_text(encoding="utf-8"))
        assert process.returncode == 0, f"$ {shlex.join(command)}\n{said.texts[-1][-4000:]}"
    return said


def watch(process: "subprocess.Popen[bytes]", said: Said) -> None:
    """Until it ends: note on which sockets its processes listen, and which Ray daemons have which authentication."""
    end = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None:
        assert time.monotonic() < end, f"{process.args} takes too long"
        family = process_tree(process.pid)
        for place in listening(list(family)) - said.sockets.keys():
            owners = [command for pid, command in family.items() if place in listening([pid])]
            said.sockets[place] = " ".join(owners)
        for pid, command in family.items():
            if "gcs_server" in command or "raylet/raylet" in command:
                said.environments |= set(variables(pid))
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)


def variables(pid: int) -> Iterator[bytes]:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended
        return
    yield from (one for one in content.split(b"\0") if one.startswith(b"RAY_AUTH_MODE="))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a command, with a home of its own."""
    home = tmp_path / "home"
    home.mkdir()
    fonts = os.environ.get("MPLCONFIGDIR") or str(Path.home() / ".cache/matplotlib")  # making the list takes seconds
    found = {**os.environ, "HOME": str(home), "MPLCONFIGDIR": fonts, "PYTHONPATH": str(ROOT)}
    found.pop("RAY_AUTH_MODE", None)  # the command itself has to see to it
    return found


def test_every_section_with_commands_is_followed() -> None:
    """A block is run, or says that it is not."""
    for page in {guide.page for guide in GUIDES}:
        needed = {block.heading for block in blocks_of(ROOT / "docs" / page) if block.run}
        assert needed == {guide.heading for guide in GUIDES if guide.page == page}
    for guide in GUIDES:
        assert guide.commands, guide.heading


@pytest.mark.slow
@pytest.mark.parametrize("guide", [UNLABELLED], ids=lambda guide: guide.page)
def test_guides_without_ray(guide: Guide, tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    said = follow(guide, folder, environment, {})
    assert "nothing was started" in said.texts[-1]


@pytest.mark.ray
def test_images_in_a_folder(tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    said = follow(FOLDER, folder, environment, {})
    assert "| pretrained " in "".join(said.texts)
    assert (folder / "look.png").exists()
    assert (folder / "embeddings.parquet").exists()
    assert "load_state_dict" in (folder / "encoder/README.md").read_text()


USER, PASSWORD = "watcher", "hunter2-in-the-uri"


@pytest.fixture
def short_folder() -> Generator[Path]:
    """Ray's sockets have short paths, or none."""
    with tempfile.TemporaryDirectory(prefix="g-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.ray
@pytest.mark.s3
def test_images_in_s3_and_no_secret_is_left(
    endpoint: ObjectStore, tmp_path: Path, short_folder: Path, environment: dict[str, str]
) -> None:
    client: Any = boto3.client("s3", **endpoint.client_arguments)
    endpoint.make_bucket(BUCKET)
    secrets = {
        "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
        "RAY_AUTH_TOKEN": "5f" * 32,
        "MLFLOW_TRACKING_USERNAME": "somebody",
        "MLFLOW_TRACKING_PASSWORD": "hunter2-in-the-environment",
    }
    folder = tmp_path / "work"
    folder.mkdir()
    environment |= {**endpoint.environment, **secrets, "RAY_TMPDIR": str(short_folder), "TMPDIR": str(short_folder)}
    with mlflow_server(tmp_path / "mlflow") as server:
        uri = server.uri.replace("http://", f"http://{USER}:{PASSWORD}@")
        words = [*SMALL, f"tracking.uri={uri}"]
        more = {"pipelines.preflight": words, "pipelines.pretrain": [*words, "register=photos"]}
        put_photos(client, tmp_path / "local")
        said = follow(IN_S3, folder, environment, more)

    assert "checks are ok" in said.texts[1]
    assert "all-reduce" in said.texts[1]
    assert "registered models:/photos/1: champion" in said.texts[2]

    del secrets["MLFLOW_TRACKING_USERNAME"]
    hidden = forms_of([PASSWORD, *secrets.values()], users=(USER, "somebody"))
    places = [folder, tmp_path / "mlflow", tmp_path / "home", short_folder, *tmp_path.glob("work-*.log")]
    assert any("session_" in str(path) for path in files_below(places))  # Ray's own logs are among them
    assert found_in(hidden, places) == []
    objects = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET, Prefix="checkpoints")["Contents"]]
    assert objects
    bodies = {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in objects}
    assert [key for key, body in bodies.items() if any_of(hidden, body)] == []

    assert len(said.sockets) > 5
    exposed = [command for place, command in said.sockets.items() if not on_loopback(place[0])]
    assert len(exposed) <= 2  # torch's own store of each group of workers: it cannot be told an address (security.md)
    workers = ("ray::RayTrainWorker", "ray::execute._setup_torch_process_group")  # the second is its title in that call
    assert [command for command in exposed if not command.startswith(workers)] == []
    assert said.environments == {b"RAY_AUTH_MODE=token"}


def put_photos(client: Any, folder: Path) -> None:
    """The photos of the guide, in the bucket."""
    photos(folder)
    for path in sorted((folder / "photos").rglob("*.png")):
        client.upload_file(str(path), BUCKET, path.relative_to(folder).as_posix())
    shutil.rmtree(folder)


def forms_of(secrets: Sequence[str], users: Sequence[str]) -> list[str]:
    """As they are, and as HTTP sends them with a user name."""
    pairs = [f"{user}:{secret}" for user in users for secret in secrets]
    return [*secrets, *(base64.b64encode(pair.encode()).decode() for pair in pairs)]


def files_below(places: Iterable[Path]) -> list[Path]:
    """All regular files."""
    return [path for place in places for path in (place, *place.rglob("*")) if path.is_file()]


def found_in(hidden: Sequence[str], places: Iterable[Path]) -> list[str]:
    """The files that have one of these texts in them."""
    return [str(path) for path in files_below(places) if any_of(hidden, path.read_bytes())]


def any_of(hidden: Iterable[str], data: bytes) -> bool:
    """Whether one of these texts is in the bytes."""
    return any(text.encode() in data for text in hidden)


def test_a_planted_secret_is_found_wherever_it_lies(tmp_path: Path) -> None:
    hidden = forms_of([PASSWORD], users=(USER,))
    (tmp_path / "deep/down").mkdir(parents=True)
    (tmp_path / "run.json").write_text('{"tracking": {"uri": "http://host:5000"}}')
    assert found_in(hidden, [tmp_path]) == []
    (tmp_path / "run.json").write_text(f'{{"tracking": {{"uri": "http://{USER}:{PASSWORD}@host:5000"}}}}')
    with closing(sqlite3.connect(tmp_path / "deep/mlflow.db")) as database:
        database.execute("create table params (value text)")
        database.execute("insert into params values (?)", (f"uri=http://{USER}:{PASSWORD}@host",))
        database.commit()
    header = base64.b64encode(f"{USER}:{PASSWORD}".encode())
    (tmp_path / "deep/down/raylet.out").write_bytes(b"\0Authorization: Basic " + header)
    assert {Path(path).name for path in found_in(hidden, [tmp_path])} == {"run.json", "mlflow.db", "raylet.out"}
    assert found_in(hidden, [tmp_path / "run.json"]) == [str(tmp_path / "run.json")]
