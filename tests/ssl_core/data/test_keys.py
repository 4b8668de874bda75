"""Keys in shards are safe and unique, and an image's own name is kept where it can be."""

import pytest

from ssl_core.data.keys import SafeKeys, safe_key
from ssl_core.data.sources import SourceImage


def keys(*names: str) -> list[str]:
    images = [SourceImage(name=name, extension="jpg", label=None, origin=name, read=bytes) for name in names]
    made = SafeKeys(images)
    return [made[number] for number in range(len(names))]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("cat/a", "cat/a"),
        ("a.b/c.d.e", "a.b/c_d_e"),
        ("/etc/x", "etc/x"),
        ("../up/./a", "up/a"),
        ("line\nbreak", "line_break"),
        (".", "image"),
        ("né 鳥", "né 鳥"),
    ],
)
def test_a_key_is_safe(name: str, key: str) -> None:
    assert safe_key(name) == key


def test_later_ones_get_a_number_that_nobody_else_has() -> None:
    assert keys("b", "a", "c") == ["b", "a", "c"]
    assert keys("a", "a", "b", "a") == ["a", "a-2", "b", "a-3"]
    assert keys("a", "a", "a-2") == ["a", "a-3", "a-2"]
    assert keys("a.b", "a_b", "a/../b", "b") == ["a_b", "a_b-2", "a/b", "b"]
