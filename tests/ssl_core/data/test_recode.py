"""Images that are made smaller, or encoded anew, show the same in fewer bytes; the others keep their bytes."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ssl_core.data.decode import DecodeError, decode, read_header
from ssl_core.data.recode import Recoding, recoded
from ssl_core.errors import UserError

MakeImage = Callable[..., bytes]


def smooth(width: int, height: int, channels: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [x * 200 / width, y * 200 / height, (x + y) * 200 / (width + height), 40 + x * 0]
    return np.stack(planes[:channels], axis=-1).round().astype(np.uint8).squeeze()


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("size", "smaller"),
    [((64, 48), (32, 24)), ((48, 64), (24, 32)), ((101, 33), (73, 24)), ((24, 200), None), ((20, 10), None)],
)
def test_the_shorter_side_is_made_smaller_and_never_larger(
    size: tuple[int, int], smaller: tuple[int, int] | None
) -> None:
    pixels = smooth(*size, 3)
    data = encoded(pixels)
    found, extension = recoded(data, "png", Recoding(resize=24))
    if smaller is None:
        assert (found, extension) == (data, "png")
        return
    assert (extension, found[:2]) == ("jpg", b"\xff\xd8")
    header = read_header(found)
    assert (header.width, header.height, header.channels) == (*smaller, 3)
    area = Image.fromarray(pixels).resize(smaller, Image.Resampling.BOX)
    assert np.abs(decode(found).astype(int) - np.asarray(area)).mean() < 3


def test_area_means_means() -> None:
    """Blocks of 4 × 4 pixels become their means: a chequerboard becomes grey."""
    pixels = np.indices((64, 64)).sum(0).astype(np.uint8) % 2 * 255
    found = decode(recoded(encoded(pixels), "png", Recoding(resize=16))[0], channels=1)
    assert np.abs(found.astype(int) - 127).max() <= 1


def test_grey_stays_grey_and_16_bits_keep_the_upper_8() -> None:
    pixels = smooth(64, 48, 1)
    grey, _ = recoded(encoded(pixels), "png", Recoding(resize=24))
    deep, extension = recoded(encoded(pixels.astype(np.uint16) * 256 + 77), "png", Recoding(resize=24))
    assert (grey, extension) == (deep, "jpg")
    assert read_header(grey).channels == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_orientation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(smooth(64, 48, 3), kind, exif=exif)
    found, _ = recoded(data, "x", Recoding(resize=24))
    assert np.asarray(Image.open(io.BytesIO(found))).shape == (32, 24, 3)
    whole = Image.fromarray(decode(data)).resize((24, 32), Image.Resampling.BOX)
    assert np.abs(decode(found).astype(int) - np.asarray(whole)).mean() < 3


def test_what_can_be_seen_through_stays_a_png_with_its_opacity() -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :32] = (200, 100, 50, 255)  # the other half is black and not to be seen
    pixels[0, 0, 3] = 254
    found, extension = recoded(encoded(pixels), "png", Recoding(resize=21))
    assert extension == "png"
    small = decode(found, channels=4)
    assert small.shape == (21, 21, 4)
    edge = small[10, 10]
    assert 0 < edge[3] < 255
    assert np.abs(edge[:3].astype(int) - (200, 100, 50)).max() <= 1  # no black fringe
    assert recoded(encoded(pixels), "png", Recoding(quality=50)) == (encoded(pixels), "png")


def test_full_opacity_is_none() -> None:
    pixels = smooth(64, 48, 4)
    pixels[..., 3] = 255
    plain = recoded(encoded(pixels[..., :3]), "png", Recoding(resize=24))
    assert recoded(encoded(pixels), "png", Recoding(resize=24)) == plain


def test_quality_alone_encodes_all_anew(make_image: MakeImage) -> None:
    data = make_image(size=(64, 48))
    low, extension = recoded(data, "jpeg", Recoding(quality=10))
    assert (extension, len(low) < len(recoded(data, "jpeg", Recoding(quality=90))[0])) == ("jpg", True)
    assert read_header(low) == read_header(data)


def test_quality_beside_resize_is_for_what_changes(make_image: MakeImage) -> None:
    data = make_image(size=(64, 48))
    assert recoded(data, "jpeg", Recoding(resize=48, quality=10)) == (data, "jpeg")
    low, high = (recoded(data, "jpeg", Recoding(resize=24, quality=quality))[0] for quality in (10, 90))
    assert len(low) < len(high)
    assert high == recoded(data, "jpeg", Recoding(resize=24))[0]


def test_what_does_not_decode_is_said() -> None:
    for recoding in (Recoding(), Recoding(resize=24), Recoding(quality=50)):
        with pytest.raises(DecodeError):
            recoded(b"\xff\xd8 no image", "jpg", recoding)


@pytest.mark.parametrize("options", [{"resize": 0}, {"quality": 0}, {"quality": 101}])
def test_what_cannot_be_meant_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(options))}="):
        Recoding(**options)


def test_a_recoding_is_told_from_others() -> None:
    kinds = [Recoding(), Recoding(resize=24), Recoding(quality=90), Recoding(resize=24, quality=50)]
    assert len({str(recoding.identity) for recoding in kinds}) == len(kinds)
    assert Recoding(resize=24).identity == Recoding(resize=24, quality=90).identity
