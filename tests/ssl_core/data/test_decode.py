"""Every kind of image file becomes the upright pixels that Pillow shows; what is too large or damaged is refused."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from ssl_core.data import decode as module
from ssl_core.data.decode import DecodeError, check_channels, decode, read_header
from ssl_core.errors import UserError

MakeImage = Callable[..., bytes]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (23, 17)) -> Image.Image:
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 10 % 256, y * 13 % 256, (x + y) * 6 % 256], -1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_kinds_are_what_pillow_shows(kind: str, channels: int) -> None:
    data = saved(picture(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(17, 23, channels)
    pixels = decode(data, channels=channels)
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(pixels.astype(int), expected, atol=0 if channels == 3 else 1)
    header = read_header(data)
    assert (header.width, header.height) == (23, 17)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_what_pillow_shows(mode: str, channels: int, progressive: bool) -> None:
    data = saved(picture(mode), "JPEG", quality=95, subsampling=0, progressive=progressive)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB").convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])).reshape(
            17, 23, channels
        )
    difference = np.abs(decode(data, channels=channels).astype(int) - expected)
    assert difference.max() <= 3  # grey comes from the luma plane, not by way of RGB
    assert read_header(data) == module.ImageHeader(width=23, height=17, channels=1 if mode == "L" else 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = saved(picture(), kind, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    pixels = decode(data)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 3
    header = read_header(data)
    assert (header.height, header.width) == expected.shape[:2]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_that_does_not_exist_turns_nothing(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    data = saved(picture(), kind, exif=exif)
    header = read_header(data)
    assert decode(data).shape[:2] == (header.height, header.width) == (17, 23)


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_byte_orders_of_exif_are_read(order: str) -> None:
    tiff = struct.pack(f"{order}2sHIHHHIHHI", b"II" if order == "<" else b"MM", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)
    data = with_exif(saved(picture(), "JPEG"), tiff)
    assert decode(data).shape == (23, 17, 3)


@pytest.mark.parametrize("tiff", [b"", b"II", b"XX*\0\0\0\0\0", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_does_not_lose_the_image(tiff: bytes) -> None:
    assert decode(with_exif(saved(picture(), "JPEG"), tiff)).shape == (17, 23, 3)


def with_exif(jpeg: bytes, tiff: bytes) -> bytes:
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_pixels_lie_over_white(channels: int) -> None:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    image.putpixel((1, 2), (10, 10, 10, 255))
    image.putpixel((2, 2), (0, 0, 0, 128))
    for data in (
        saved(image, "PNG"),
        saved(image, "WEBP", lossless=True, exact=True),
        saved(image.convert("LA"), "PNG"),
    ):
        pixels = decode(data, channels=channels)
        assert pixels[0, 0].tolist() == [255] * channels
        assert pixels[2, 1].tolist() == [10] * channels
        assert pixels[2, 2].tolist() == [127] * channels
        assert read_header(data).channels == 4


def test_a_transparent_colour_of_a_palette_or_of_rgb_lies_over_white() -> None:
    palette = picture("P")
    palette.putpixel((0, 0), 5)
    for image, transparent in ((palette, 5), (picture(), (0, 0, 0)), (picture("L"), 0)):
        data = saved(image, "PNG", transparency=transparent)
        assert decode(data)[0, 0].tolist() == [255, 255, 255]
        assert read_header(data).channels == 4


def test_four_channels_keep_the_opacity() -> None:
    image = Image.new("RGBA", (4, 3), (200, 100, 50, 7))
    assert decode(saved(image, "PNG"), channels=4)[0, 0].tolist() == [200, 100, 50, 7]
    assert decode(saved(picture(), "JPEG"), channels=4)[..., 3].min() == 255


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_keep_the_upper_eight(kind: str) -> None:
    values = (np.arange(256, dtype=np.uint16).reshape(16, 16) << 8) + 77
    data = saved(Image.fromarray(values), kind)
    np.testing.assert_array_equal(decode(data, channels=1)[..., 0], np.arange(256).reshape(16, 16))
    np.testing.assert_array_equal(decode(data)[..., 2], np.arange(256).reshape(16, 16))
    assert read_header(data).channels == 1


def test_sixteen_bit_colour_keeps_the_upper_eight() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    done, data = cv2.imencode(".png", values[..., ::-1])
    assert done
    np.testing.assert_array_equal(decode(data.tobytes()), (values >> 8).astype(np.uint8))


def test_floating_point_samples_are_refused() -> None:
    data = saved(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF")
    with pytest.raises(DecodeError, match="floating-point"):
        decode(data)


def test_two_colour_and_palette_images() -> None:
    assert set(np.unique(decode(saved(picture("1"), "PNG"), channels=1))) <= {0, 255}
    data = saved(picture("P"), "PNG")
    np.testing.assert_array_equal(decode(data), np.asarray(picture("P").convert("RGB")))


def test_the_first_frame_of_an_animation_is_shown() -> None:
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
        assert decode(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_the_size_is_bounded_before_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(picture(), kind)
    assert decode(data, max_pixels=23 * 17).shape == (17, 23, 3)

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("decoded before the size was checked")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", forbidden)
    monkeypatch.setattr(cv2, "imdecode", forbidden)
    monkeypatch.setattr(Image.Image, "load", forbidden)
    with pytest.raises(DecodeError, match="23 x 17 pixels are more than the bound of 390"):
        decode(data, max_pixels=23 * 17 - 1)


def test_a_bomb_is_refused_by_its_header() -> None:
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    with pytest.raises(DecodeError, match="60000 x 60000"):
        decode(png((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_a_truncated_image_is_no_image(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    for share in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(DecodeError):
            decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8" + bytes(400), b"\x89PNG\r\n\x1a\n", bytes(99)]
)
def test_other_bytes_are_no_image(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)
    with pytest.raises(DecodeError):
        read_header(data)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    made = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def test_a_png_of_too_few_rows_is_no_image() -> None:
    """Each chunk of it is whole: OpenCV and Pillow would make up the rest."""
    head, rows = struct.pack(">IIBBBBB", 5, 4, 8, 0, 0, 0, 0), bytes(4 * 6)
    assert decode(png((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))).shape == (4, 5, 3)
    with pytest.raises(DecodeError, match="its rows end after 18 of 24 bytes"):
        decode(png((b"IHDR", head), (b"IDAT", zlib.compress(rows[:18])), (b"IEND", b"")))


def test_a_second_header_does_not_hide_the_size_of_a_png(capfd: pytest.CaptureFixture[str]) -> None:
    small, large = (struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0) for side in (4, 9))
    chunks = (b"IDAT", zlib.compress(bytes(9 * 28))), (b"IEND", b"")
    data = png((b"IHDR", small), (b"IHDR", large), *chunks)
    assert (read_header(data).width, decode(data).shape) == (9, (9, 9, 3))
    with pytest.raises(DecodeError, match="9 x 9 pixels"):
        decode(data, max_pixels=16)
    assert capfd.readouterr().err == ""  # where libpng complains of what it does not take


@pytest.mark.parametrize("marker", [0x01, 0xD0, 0xD7])
def test_a_marker_without_a_length_does_not_hide_the_size_of_a_jpeg(marker: int) -> None:
    """Two bytes after it, taken for a length, would lead into a comment, where a small frame lies ready."""
    comment = bytearray(b"\xff\xfe" + struct.pack(">H", 65_000) + bytes(64_998)) * 2
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 2, 2, 3) + bytes(9)
    comment[0xFFFE : 0xFFFE + len(frame)] = frame
    data = b"\xff\xd8\xff" + bytes([marker]) + comment + saved(picture(), "JPEG")[2:]
    with pytest.raises(DecodeError):
        decode(data, max_pixels=4)


def test_a_flipped_bit_in_a_png_is_found() -> None:
    data = bytearray(saved(picture(size=(64, 64)), "PNG"))
    data[len(data) // 2] ^= 4
    with pytest.raises(DecodeError):
        decode(bytes(data))


def test_postscript_is_not_interpreted() -> None:
    with pytest.raises(DecodeError, match="not an image of a known kind"):
        decode(saved(picture(), "EPS"))


def test_plain_files_take_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("went through Pillow")

    monkeypatch.setattr(Image, "open", forbidden)
    for data in (
        saved(picture(), "JPEG"),
        saved(picture("L"), "JPEG"),
        saved(picture(), "PNG"),
        saved(picture("L"), "PNG"),
    ):
        assert decode(data).shape == (17, 23, 3)
        assert decode(data, channels=1).shape == (17, 23, 1)
        read_header(data)


def test_only_plain_and_whole_png_goes_to_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenCV might show otherwise than Pillow, or complain about on the console, it does not get to see."""

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("went through OpenCV")

    monkeypatch.setattr(cv2, "imdecode", forbidden)
    turned = Image.Exif()
    turned[0x0112] = 6
    sixteen = Image.fromarray(np.zeros((4, 4), dtype=np.uint16))
    for data in (
        saved(sixteen, "PNG"),
        saved(picture("P"), "PNG"),
        saved(picture("RGBA"), "PNG"),
        saved(picture(), "PNG", transparency=(1, 2, 3)),
        saved(picture(), "PNG", exif=turned),
    ):
        decode(data)
    whole = saved(picture(), "PNG")
    for place in (20, len(whole) // 2):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        with pytest.raises(DecodeError):
            decode(bytes(damaged))


def test_cmyk_without_adobes_marker() -> None:
    """Adobe's CMYK is stored inverted, others' is not."""
    data = saved(picture("CMYK"), "JPEG", quality=95, subsampling=0)
    start = data.index(b"\xff\xee")
    data = data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4]) :]
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(decode(data) - expected).max() <= 3


def test_channels_that_files_do_not_have_are_refused() -> None:
    for channels in (1, 3, 4):
        check_channels(channels)
    with pytest.raises(UserError, match=r"model\.in_chans=7"):
        check_channels(7)
