"""A bucket's listing is in the order of a folder's, holds any name, and is made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ssl_core.data.listing import listed_below
from ssl_core.storage import s3
from ssl_core.storage.s3 import S3Location

LOCATION = S3Location("bucket", "photos")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the bucket holds; S3 lists it in the order of whole names."""
    found: list[str] = []

    def list_sizes(location: S3Location) -> Iterator[tuple[str, int]]:
        assert location == LOCATION
        return ((name, len(name)) for name in sorted(found))

    monkeypatch.setattr(s3, "list_sizes", list_sizes)
    return found


def listed(folder: Path | None = None) -> list[tuple[str, int]]:
    return list(listed_below(LOCATION, folder, wanted=lambda name: not name.endswith(".txt")))


def test_the_order_is_that_of_paths(names: list[str]) -> None:
    names += ["cat/b.jpg", "cat-2/a.jpg", "cat.x/a.jpg", "cat/a.jpg", "cat/notes.txt", "dog.jpg"]
    assert sorted(names) != sorted(names, key=lambda name: Path(name).parts)
    expected = [Path(name) for name in names if not name.endswith(".txt")]
    assert listed() == [(path.as_posix(), len(path.as_posix())) for path in sorted(expected)]


def test_any_name_is_read_back(names: list[str]) -> None:
    names += ["né/鳥.jpg", "line\nbreak.jpg", '"quoted".jpg', "a//b.jpg"]
    assert sorted(listed()) == sorted((name, len(name)) for name in names)


def test_nothing_is_an_empty_listing(names: list[str]) -> None:
    names.append("readme.txt")
    assert listed() == []


def test_a_listing_is_kept(names: list[str], tmp_path: Path) -> None:
    names.append("a.jpg")
    assert listed(tmp_path) == [("a.jpg", 5)]
    names.append("b.jpg")
    assert listed(tmp_path) == [("a.jpg", 5)]
    assert listed() == [("a.jpg", 5), ("b.jpg", 5)]


def test_parts_of_a_listing(names: list[str]) -> None:
    names += ["a.jpg", "b.jpg", "c.jpg"]
    listing = listed_below(LOCATION, None, wanted=lambda name: True)
    assert len(listing) == 3
    assert listing[-1] == ("c.jpg", 5)
    assert listing[1:] == [("b.jpg", 5), ("c.jpg", 5)]
    with pytest.raises(IndexError):
        listing[3]
