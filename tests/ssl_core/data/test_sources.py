"""What lies in a folder, a table or scikit-learn becomes images with the labels that were meant."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_core.data.sources import open_source
from ssl_core.errors import UserError

MakeImage = Callable[..., bytes]


@pytest.fixture
def put(tmp_path: Path, make_image: MakeImage) -> Callable[..., Path]:
    """`put("a/b.jpg", "c.txt")` → a folder with these files."""

    def write(*names: str) -> Path:
        for number, name in enumerate(names):
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(make_image(number))
        return tmp_path / "images"

    return write


def test_class_folders_are_labels_in_the_order_of_their_names(put: Callable[..., Path], make_image: MakeImage) -> None:
    folder = put(
        "dog/b.jpg", "cat/x/y.PNG", "dog/a.jpeg", "cat/notes.txt", "empty/readme.txt", "zebra/.hidden.jpg", "ant/1.webp"
    )
    source = open_source(str(folder))
    assert source.classes == ("ant", "cat", "dog")
    assert [(image.name, image.extension, image.label) for image in source.images] == [
        ("ant/1", "webp", 0),
        ("cat/x/y", "png", 1),
        ("dog/a", "jpeg", 2),
        ("dog/b", "jpg", 2),
    ]
    assert source.images[3].read() == make_image(0)
    assert source.images[3].origin == str(folder / "dog/b.jpg")


def test_a_flat_folder_has_no_labels(put: Callable[..., Path]) -> None:
    source = open_source(str(put("b.jpg", "a.png", "thumbs.db", "docs/readme.txt")))
    assert source.classes == ()
    assert [(image.name, image.label) for image in source.images] == [("a", None), ("b", None)]


def test_a_folder_that_is_both_is_refused_unless_labels_are_not_wanted(put: Callable[..., Path]) -> None:
    folder = put("thumb.jpg", "cat/a.jpg", "dog/b.jpg")
    with pytest.raises(UserError, match=r"1 images of its own and 2 in folders.*labels=none"):
        open_source(str(folder))
    source = open_source(str(folder), labels="none")
    assert [(image.name, image.label) for image in source.images] == [("cat/a", None), ("dog/b", None), ("thumb", None)]
    assert source.classes == ()


def test_links_are_followed_and_loops_are_not(put: Callable[..., Path], tmp_path: Path, make_image: MakeImage) -> None:
    folder = put("cat/a.jpg")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.jpg").write_bytes(make_image(5))
    (folder / "dog").symlink_to(tmp_path / "elsewhere")
    (folder / "cat/loop").symlink_to(folder)
    assert [image.name for image in open_source(str(folder)).images] == ["cat/a", "dog/b"]


def test_a_table_gives_paths_and_labels(put: Callable[..., Path]) -> None:
    folder = put("one.jpg", "two.jpg", "three.jpg")
    table = folder / "list.csv"
    table.write_text("label,path,other\ndog,two.jpg,1\ncat,one.jpg,2\n,three.jpg,3\n", encoding="utf-8-sig")
    source = open_source(str(table))
    assert source.classes == ("cat", "dog")
    assert [(image.name, image.label) for image in source.images] == [("one", 0), ("three", None), ("two", 1)]


def test_whole_numbers_in_a_table_stay_what_they_are(put: Callable[..., Path]) -> None:
    """Two tables packed apart agree, even where one of them lacks a class."""
    folder = put("one.jpg", "two.jpg")
    (folder / "list.csv").write_text("path,label\none.jpg,3\ntwo.jpg,07\n")
    source = open_source(str(folder / "list.csv"))
    assert source.classes == tuple("01234567")
    assert [image.label for image in source.images] == [3, 7]


def test_a_table_without_labels(put: Callable[..., Path]) -> None:
    folder = put("one.jpg")
    (folder / "list.csv").write_text("path\none.jpg\n")
    assert [image.label for image in open_source(str(folder / "list.csv")).images] == [None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column named path"),
        ("file,label\none.jpg,1\n", "no column named path"),
        ("path,label\n", "lists no images"),
        ("path,label\none.jpg,1\nabsent.jpg,2\n", r"line 3: there is no file .*absent\.jpg"),
        ("path,label\none.txt,1\n", r"line 2: 'one\.txt' does not end like an image"),
    ],
)
def test_a_table_that_is_wrong_is_refused_by_line(text: str, words: str, put: Callable[..., Path]) -> None:
    table = put("one.jpg") / "list.csv"
    table.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        open_source(str(table))
    assert str(table) in str(caught.value)


def test_the_digits_are_images_with_their_labels() -> None:
    source = open_source("digits")
    assert (len(source.images), source.classes) == (1797, tuple("0123456789"))
    first = source.images[0]
    assert (first.name, first.extension, first.label) == ("digit-0000", "png", 0)
    assert first.read() == first.read()
    with Image.open(io.BytesIO(first.read())) as image:
        pixels = np.asarray(image)
    assert (image.mode, pixels.shape, int(pixels.max())) == ("L", (8, 8), 239)  # 15 of 16 levels


@pytest.mark.parametrize("content", [[], ["a/readme.txt", "notes.md"]])
def test_a_folder_without_images_is_named(content: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in content:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("text")
    with pytest.raises(UserError, match=f"no images in {folder}"):
        open_source(str(folder))


def test_what_is_no_source_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_source(str(tmp_path / "nowhere"))
    (tmp_path / "x.zip").touch()
    with pytest.raises(UserError, match=r"x\.zip is a file"):
        open_source(str(tmp_path / "x.zip"))
    with pytest.raises(UserError, match="pipe:"):
        open_source("pipe:cat /etc/passwd")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/a.tar").touch()
    with pytest.raises(UserError, match="use index="):
        open_source(str(tmp_path / "shards"))
