"""The manifest of shards that somebody else wrote says what is in them, and what is odd about them is reported."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_core.data.indexing import index_folder
from ssl_core.errors import UserError

MakeImage = Callable[..., bytes]
MakeTar = Callable[..., bytes]


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def shard(tmp_path: Path, make_tar: MakeTar) -> Callable[..., Path]:
    """`shard([(name, bytes), …])` → a folder with one more shard."""

    def write(members: list[tuple[str, bytes]], folder: str = "shards") -> Path:
        (tmp_path / folder).mkdir(exist_ok=True)
        number = len(list((tmp_path / folder).glob("*.tar")))
        (tmp_path / folder / f"{number:05d}.tar").write_bytes(make_tar(members))
        return tmp_path / folder

    return write


def test_it_says_what_is_there(shard: Callable[..., Path], make_image: MakeImage) -> None:
    """As img2dataset writes: digits for keys, a text and a JSON beside each image, no labels."""
    kinds = {"jpg": make_image(size=(20, 30)), "json": b"{}", "txt": b"a caption"}
    folder = shard([(f"{sample:09d}.{extension}", data) for sample in range(3) for extension, data in kinds.items()])
    kinds["jpg"] = make_image(size=(22, 31))
    shard([(f"{sample:09d}.{extension}", data) for sample in range(10, 12) for extension, data in kinds.items()])
    (folder / "00000.parquet").write_bytes(b"what img2dataset writes beside them")
    manifest, findings = index_folder(folder)
    assert [one.name for one in manifest.shards] == ["00000.tar", "00001.tar"]
    assert [one.samples for one in manifest.shards] == [3, 2]
    assert (manifest.width, manifest.height) == ((20, 22), (30, 31))
    assert (manifest.labelled, manifest.labelled_samples, manifest.classes) == (False, 0, ())
    assert findings.ignored == {"json": 5, "txt": 5}
    assert not (folder / "manifest.json").exists()


def test_statistics_are_those_of_the_pixels(shard: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8) // np.asarray([1, 2, 4], dtype=np.uint8)
    manifest, _ = index_folder(shard([(f"{number}.png", png(image)) for number, image in enumerate(images)]))
    pixels = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(manifest.mean, pixels.mean(0), atol=6e-5)
    np.testing.assert_allclose(manifest.std, pixels.std(0), atol=6e-5)
    grey = pixels @ [0.299, 0.587, 0.114]
    assert manifest.statistics.grey_mean == pytest.approx(grey.mean(), abs=6e-5)
    assert manifest.statistics.grey_deviation == pytest.approx(grey.std(), abs=6e-5)


def test_large_images_weigh_as_much_as_small_ones(shard: Callable[..., Path]) -> None:
    images = [np.full((300, 400, 3), 255, np.uint8), np.zeros((4, 4, 3), np.uint8)]
    manifest, _ = index_folder(shard([(f"{number}.png", png(image)) for number, image in enumerate(images)]))
    assert manifest.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("mode", "channels", "values"), [("L", 1, 1), ("RGB", 3, 3), ("RGBA", 4, 3), ("P", 3, 3)])
def test_channels_are_the_most_that_any_image_has(
    mode: str, channels: int, values: int, shard: Callable[..., Path], make_image: MakeImage
) -> None:
    members = [("a.png", make_image(kind="PNG", mode="L")), ("b.png", make_image(kind="PNG", mode=mode))]
    manifest, _ = index_folder(shard(members))
    assert (manifest.channels, len(manifest.mean), len(manifest.std)) == (channels, values, values)


def test_class_names_come_from_a_file_in_the_folder_or_above(
    shard: Callable[..., Path], make_image: MakeImage, tmp_path: Path
) -> None:
    folder = shard([("a.jpg", make_image()), ("a.cls", b"1")])
    assert index_folder(folder)[0].classes == ("0", "1")
    (tmp_path / "classes.txt").write_text("cat\ndog\n\n")
    assert index_folder(folder)[0].classes == ("cat", "dog")
    (folder / "classes.txt").write_text("ape\nbear\ncow\n")
    assert index_folder(folder)[0].classes == ("ape", "bear", "cow")
    assert index_folder(folder, classes=["x", "y"])[0].classes == ("x", "y")
    (folder / "classes.txt").write_text("ape\n")
    with pytest.raises(UserError, match=r"the label 1, but .*classes\.txt names 1 classes"):
        index_folder(folder)


def test_some_labels_are_not_all_labels(shard: Callable[..., Path], make_image: MakeImage) -> None:
    manifest, _ = index_folder(shard([("a.jpg", make_image()), ("a.cls", b"0"), ("b.jpg", make_image(1))]))
    assert (manifest.labelled, manifest.labelled_samples) == (False, 1)


def test_odd_things_are_reported_and_not_fatal(shard: Callable[..., Path], make_image: MakeImage) -> None:
    folder = shard([("a.jpg", make_image()), ("b.jpg", b"text"), ("a.jpg", make_image(1)), ("c.cls", b"1")])
    manifest, findings = index_folder(folder)
    assert manifest.num_samples == 2
    assert findings.repeated == ("00000.tar: a",)
    assert findings.unreadable == ("00000.tar: b: not an image of a known kind",)
    assert findings.without_image == 1


def test_what_is_no_data_set_is_refused(shard: Callable[..., Path], make_image: MakeImage, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        index_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no \.tar shards"):
        index_folder(tmp_path / "empty")
    (tmp_path / "sets").mkdir()
    shard([("a.jpg", make_image())], "sets/train")
    with pytest.raises(UserError, match="its folders train do: index each"):
        index_folder(tmp_path / "sets")
    with pytest.raises(UserError, match=r"no readable image in the 1 shards .*extensions in them: txt"):
        index_folder(shard([("a.txt", b"x")], "texts"))
    with pytest.raises(UserError, match=r"no readable image .*: a: not an image"):
        index_folder(shard([("a.jpg", b"x")], "broken"))
    with pytest.raises(UserError, match=r"00000\.tar: unsafe member"):
        index_folder(shard([("/a.jpg", make_image())], "unsafe"))
