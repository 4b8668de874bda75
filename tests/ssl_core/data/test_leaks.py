"""Copies of a training image are found however they were saved; others, blank ones and unreadable ones are not."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ssl_core.data.decode import Pixels
from ssl_core.data.fingerprints import SIDE, likeness, mirrored, perceptual_hashes, thumbnail
from ssl_core.data.indexing import index_folder
from ssl_core.data.leaks import MAX_DISTANCE, MIN_LIKENESS, Leak, find_leaks, near_pairs
from ssl_core.data.reader import Reader

MakeTar = Callable[..., bytes]
MakeReader = Callable[[str, Sequence[bytes]], Reader]


def picture(number: int, height: int = 120, width: int = 160) -> Pixels:
    """Something like a photo, coarse forms and finer ones: uint8 [height, width, 3]."""
    rng = np.random.default_rng(number)
    layers = [
        cv2.resize(rng.uniform(-1, 1, (side, side, 3)), (width, height), interpolation=cv2.INTER_CUBIC) * weight
        for side, weight in ((4, 80), (9, 40), (25, 20))
    ]
    return np.clip(128 + sum(layers), 0, 255).astype(np.uint8)


def resized(pixels: Pixels, width: int, height: int) -> Pixels:
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


def saved(pixels: Pixels, kind: str = "PNG", **options: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def make_reader(tmp_path: Path, make_tar: MakeTar) -> MakeReader:
    """`make_reader(name, [image bytes, …])` → a reader of two shards."""

    def make(name: str, images: Sequence[bytes]) -> Reader:
        (tmp_path / name).mkdir()
        half = len(images) // 2
        for shard, part in enumerate((images[:half], images[half:])):
            members = [(f"{name}-{shard}-{number}.png", data) for number, data in enumerate(part)]
            (tmp_path / name / f"{shard}.tar").write_bytes(make_tar(members))
        return Reader(index_folder(tmp_path / name)[0])

    return make


def test_copies_are_found_and_nothing_else(make_reader: MakeReader) -> None:
    blank = np.full((20, 20, 3), 90, np.uint8)
    originals = [picture(number) for number in range(40)]
    train = make_reader("train", [saved(one) for one in originals] + [saved(blank), b"no image", b"nor this"])
    copies: dict[int, tuple[str, bytes]] = {
        3: ("same bytes", saved(originals[3])),
        4: ("same picture", saved(originals[4], "JPEG", quality=30)),
        5: ("same picture", saved(resized(originals[5], 64, 48), "JPEG")),
        6: ("same picture", saved(originals[6][6:, 8:], "JPEG")),  # a corner, 5 % in each direction
        7: ("same picture", saved(originals[7][3:-3, 4:-4], "JPEG")),
        8: ("same picture", saved(originals[8] // 5 * 4 + 20)),
        9: ("same picture", saved(np.asarray(Image.fromarray(originals[9]).convert("L")))),
        10: ("mirror image", saved(originals[10][:, ::-1], "JPEG")),
        11: ("mirror image", saved(originals[11][:-6, ::-1][:, 8:], "JPEG")),
        41: ("same bytes", b"no image"),
    }
    others = [saved(picture(number)) for number in range(100, 130)] + [saved(blank // 2), b"something else"]
    val = make_reader("val", [*others, *(data for _, data in copies.values())])
    found = find_leaks(train, val)
    assert [(leak.val, leak.train, leak.kind) for leak in found] == [
        (len(others) + number, original, kind) for number, (original, (kind, _)) in enumerate(copies.items())
    ]
    assert all(MIN_LIKENESS <= leak.likeness <= 1 for leak in found)
    assert train.quarantine.count == val.quarantine.count == 0


def test_the_most_alike_of_several_is_named(make_reader: MakeReader) -> None:
    one = picture(1)
    train = make_reader(
        "train", [saved(one[4:, 5:]), saved(one, "JPEG", quality=20), saved(one, "BMP"), saved(picture(2))]
    )
    assert find_leaks(train, make_reader("val", [saved(one), saved(picture(3))])) == [
        Leak(val=0, train=2, kind="same picture", likeness=1.0)
    ]


def test_images_done_are_counted(make_reader: MakeReader) -> None:
    seen: list[tuple[int, int]] = []
    train, val = (make_reader(name, [saved(picture(number)) for number in range(3)]) for name in ("train", "val"))
    find_leaks(train, val, done=lambda images, of: seen.append((images, of)))
    assert seen == [(3, 6), (6, 6)]


def test_near_pairs_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64) << np.uint64(1)
    queries = rng.integers(0, 2**63, 90, dtype=np.uint64)
    for distance in range(40):  # planted, on both sides of the bound
        flipped = rng.permutation(64)[:distance].astype(np.uint64)
        queries[distance] = hashes[distance] ^ np.bitwise_or.reduce(np.uint64(1) << flipped, initial=np.uint64(0))
    queries[80:] = queries[0]
    near = np.bitwise_count(queries[:, None] ^ hashes) <= MAX_DISTANCE
    np.testing.assert_array_equal(near_pairs(queries, hashes), np.argwhere(near))
    assert near.sum() == MAX_DISTANCE + 1 + 10
    assert near_pairs(queries[:0], hashes).shape == near_pairs(queries, hashes[:0]).shape == (0, 2)


def test_the_hash_of_a_mirror_image_is_computed_from_the_hash() -> None:
    for number in range(20):
        small = thumbnail(picture(number))
        assert small is not None
        found = perceptual_hashes(np.ascontiguousarray(small[:, ::-1]))[0]
        assert np.bitwise_count(found ^ mirrored(perceptual_hashes(small))[0]) <= 1
        assert np.bitwise_count(found ^ perceptual_hashes(small)[0]) > MAX_DISTANCE


def test_likeness_is_high_for_the_same_picture_and_low_for_others() -> None:
    one, other = picture(1, 64, 64)[..., 0].astype(np.float32), picture(2, 64, 64)[..., 0].astype(np.float32)
    assert likeness(one, one) == pytest.approx(1, abs=1e-4)
    assert likeness(one, one * 0.5 + 30) == pytest.approx(1, abs=1e-4)
    assert likeness(one, resized(one.astype(np.uint8)[4:, 4:], SIDE, SIDE).astype(np.float32)) > 0.95
    assert likeness(one, other) < 0.6


def test_a_blank_image_has_no_thumbnail() -> None:
    assert thumbnail(np.full((9, 9, 3), 200, np.uint8)) is None
    assert thumbnail(picture(0)) is not None
