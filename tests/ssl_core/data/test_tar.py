"""What tarfile and webdataset write is found where it lies; what is damaged or unsafe is refused by name."""

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from webdataset.writer import TarWriter

from ssl_core.data.tar import index_shard, map_shard, read_labels
from ssl_core.errors import UserError

MakeTar = Callable[..., bytes]

NAMES = {
    "short": "{}",
    "folders": "train/2024.05/./{}",
    "prefix": "folder-" * 12 + "/" + "name-" * 6 + "{}",  # ustar splits it between its two fields
    "long": "folder-" * 40 + "/" + "name-" * 30 + "{}",  # GNU and pax say it in an extended header
    "foreign": "größe/鳥-{}",
}


def some_members(pattern: str = "{}") -> list[tuple[str, bytes]]:
    return [
        (f"{pattern.format(number)}.{extension}", data)
        for number in range(7)
        for extension, data in (("jpg", bytes([number]) * (number * 300)), ("cls", str(number * 10).encode()))
    ]


@pytest.mark.parametrize(
    ("pattern", "form"),
    [
        (pattern, form)
        for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
        for pattern in NAMES
        if (pattern, form) != ("long", tarfile.USTAR_FORMAT)  # ustar has no room for such a name
    ],
)
def test_finds_what_tarfile_wrote(pattern: str, form: int, make_tar: MakeTar) -> None:
    members = some_members(NAMES[pattern])
    shard = make_tar(members, form=form)

    index = index_shard(shard, "s.tar")

    assert index.keys == [NAMES[pattern].format(number) for number in range(7)]
    images = [
        shard[offset : offset + size] for offset, size in zip(index.image_offsets, index.image_sizes, strict=True)
    ]
    assert images == [data for name, data in members if name.endswith("jpg")]
    assert read_labels(shard, index, "s.tar").tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert not index.ignored
    assert not index.repeated


def test_finds_what_webdataset_wrote(tmp_path: Path) -> None:
    with (tmp_path / "s.tar").open("wb") as file:
        tar: Any = TarWriter(file, mtime=0, encoder=False)
        tar.write({"__key__": "a/one", "jpg": b"1", "cls": b"4", "json": b"{}"})
        tar.write({"__key__": "a/two", "jpg": b"22"})
        tar.close()

    index = index_shard(map_shard(tmp_path / "s.tar"), "s.tar")

    assert index.keys == ["a/one", "a/two"]
    assert read_labels(map_shard(tmp_path / "s.tar"), index, "s.tar").tolist() == [4, -1]
    assert index.ignored == {"json": 1}


def test_old_headers_without_a_format_are_read(make_tar: MakeTar) -> None:
    shard = bytearray(make_tar(some_members(), form=tarfile.USTAR_FORMAT))
    for offset in header_offsets(shard):
        shard[offset + 257 : offset + 265] = bytes(8)
        set_checksum(shard, offset)
    assert index_shard(bytes(shard), "s.tar").keys == [str(number) for number in range(7)]


def test_binary_sizes_are_read(make_tar: MakeTar) -> None:
    shard = bytearray(make_tar([("a.jpg", b"x" * 1000), ("b.jpg", b"y")], form=tarfile.GNU_FORMAT))
    shard[124:136] = b"\x80" + (1000).to_bytes(11, "big")
    set_checksum(shard, 0)
    assert index_shard(bytes(shard), "s.tar").image_sizes.tolist() == [1000, 1]


def test_a_global_header_speaks_of_all_members() -> None:
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "an archive"}
    ) as tar:
        add(tar, "a.jpg", b"1")
        add(tar, "b.jpg", b"2")
    assert index_shard(stream.getvalue(), "s.tar").keys == ["a", "b"]


def test_members_need_not_be_neighbours_nor_in_order(make_tar: MakeTar) -> None:
    shard = make_tar(
        [("a.cls", b"7"), ("b.jpg", b"B"), ("lost.cls", b"1"), ("c.PNG", b"C"), ("b.cls", b"8"), ("a.jpg", b"A")]
    )
    index = index_shard(shard, "s.tar")
    assert index.keys == ["b", "c", "a"]
    assert read_labels(shard, index, "s.tar").tolist() == [8, -1, 7]
    assert index.without_image == 1


def test_the_first_of_a_repeated_key_stands(make_tar: MakeTar) -> None:
    shard = make_tar([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3"), ("b.png", b"4"), ("a.jpg", b"5")])
    index = index_shard(shard, "s.tar")
    assert index.keys == ["a", "b"]
    assert [shard[offset] for offset in index.image_offsets] == [ord("1"), ord("2")]
    assert index.repeated == ("a", "b")


def test_other_members_are_counted(make_tar: MakeTar) -> None:
    names = ["a.jpg", "a.json", "a.seg.png", "b.TXT", "c.txt", "readme", ".hidden.jpg", "d/._x.jpg"]
    index = index_shard(make_tar([(name, b"x") for name in names]), "s.tar")
    assert index.keys == ["a"]
    assert index.ignored == {"json": 1, "seg.png": 1, "txt": 2, "": 1, "hidden.jpg": 1, "_x.jpg": 1}


def test_folders_are_no_members() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        folder = tarfile.TarInfo("./a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        add(tar, "./a/x.jpg", b"1")
    assert index_shard(stream.getvalue(), "s.tar").keys == ["./a/x"]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("/etc/passwd.jpg", tarfile.REGTYPE, "absolute"),
        ("a/../../b.jpg", tarfile.REGTYPE, "leads out"),
        ("..", tarfile.DIRTYPE, "leads out"),
        ("a.jpg", tarfile.SYMTYPE, "symbolic link"),
        ("a.jpg", tarfile.LNKTYPE, "hard link"),
        ("a.jpg", tarfile.CHRTYPE, "device"),
        ("a.jpg", tarfile.BLKTYPE, "device"),
        ("a.jpg", tarfile.FIFOTYPE, "pipe"),
        ("a.jpg", tarfile.GNUTYPE_SPARSE, "sparse"),
        ("a.jpg", b"Z", "unknown type"),
        ("x" * 200 + "/../a.jpg", tarfile.REGTYPE, "leads out"),
    ],
)
def test_an_unsafe_member_refuses_the_shard(name: str, kind: bytes, words: str) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        add(tar, "good.jpg", b"1")
        info = tarfile.TarInfo(name)
        info.type = kind
        info.linkname = "good.jpg" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        tar.addfile(info)
    with pytest.raises(UserError, match=rf"^s\.tar: .*{words}.*at byte [12],[0-9]+\)"):
        index_shard(stream.getvalue(), "s.tar")


def test_two_dots_in_a_name_are_a_name(make_tar: MakeTar) -> None:
    assert index_shard(make_tar([("a..b/c.jpg", b"1")]), "s.tar").keys == ["a..b/c"]


def test_a_pax_sparse_file_is_refused() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "a.jpg"}
        tar.addfile(info)
    with pytest.raises(UserError, match=r"'a.jpg' is a sparse file"):
        index_shard(stream.getvalue(), "s.tar")


def test_a_cut_anywhere_is_found(make_tar: MakeTar) -> None:
    """At a member's boundary, inside a header, contents or padding: tarfile is silent about most of them."""
    shard = make_tar(some_members())
    end = header_offsets(shard)[-1] + 1024
    for cut in range(0, end, 128):
        with pytest.raises(UserError, match=r"truncated|not a tar header"):
            index_shard(shard[:cut], "s.tar")
    last = header_offsets(shard)[-3]
    with pytest.raises(
        UserError, match=rf"truncated: '5\.cls' should reach byte {last + 514:,} \(at byte {last + 513:,}\)"
    ):
        index_shard(shard[: last + 513], "s.tar")
    index_shard(shard[: end + 512], "s.tar")  # one block of zeros is end mark enough


@pytest.mark.parametrize("garbage", [b"\0", b"g", b"\xff"])
def test_a_header_that_is_overwritten_is_found(garbage: bytes, make_tar: MakeTar) -> None:
    shard = bytearray(make_tar(some_members()))
    offset = header_offsets(shard)[5]
    shard[offset : offset + 512] = garbage * 512
    with pytest.raises(UserError, match=r"s\.tar: .*at byte [0-9,]+"):
        index_shard(bytes(shard), "s.tar")


def test_any_flipped_byte_of_a_header_is_found_where_it_is(make_tar: MakeTar) -> None:
    shard = make_tar(some_members())
    header = header_offsets(shard)[4]
    for place in set(range(512)) - {154, 155}:  # what ends the checksum's text may be anything blank
        damaged = bytearray(shard)
        damaged[header + place] ^= 0x41
        with pytest.raises(UserError, match=f"at byte {header:,}") as caught:
            index_shard(bytes(damaged), "s.tar")
        assert "not a tar header" in str(caught.value)


def test_data_after_the_end_mark_is_found(make_tar: MakeTar) -> None:
    """Two tars in one file: a reader that stops at the mark would lose the second."""
    shard = make_tar([("a.jpg", b"1")])
    with pytest.raises(UserError, match="data follows its end mark"):
        index_shard(shard + make_tar([("b.jpg", b"1")]), "s.tar")


def test_an_empty_file_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "s.tar").touch()
    with pytest.raises(UserError, match="truncated"):
        index_shard(map_shard(tmp_path / "s.tar"), "s.tar")


def test_a_damaged_extended_header_is_refused(make_tar: MakeTar) -> None:
    shard = bytearray(make_tar([(NAMES["long"].format(1) + ".jpg", b"1")]))
    shard[512:520] = b"99 path="
    with pytest.raises(UserError, match="damaged extended header"):
        index_shard(bytes(shard), "s.tar")


def pax(records: bytes, *, kind: bytes = b"x") -> bytes:
    """A shard of one member with an extended header of these records before it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("extended")
        info.type, info.size = kind, len(records)
        tar.addfile(info, io.BytesIO(records))
        add(tar, "a.jpg", b"1")
    return stream.getvalue()


def record(keyword: bytes, value: bytes) -> bytes:
    body = b" " + keyword + b"=" + value + b"\n"
    digits = len(str(len(body) + len(str(len(body)))))
    return b"%d" % (len(body) + digits) + body


@pytest.mark.parametrize("kind", [b"x", b"g"])
def test_many_records_are_walked_in_one_go(kind: bytes) -> None:
    """Two megabytes of them: work by the square of that would take minutes."""
    shard = pax(record(b"a", b"b") * 300_000 + record(b"path", b"c.jpg"), kind=kind)
    assert index_shard(shard, "s.tar").keys == ["c"]


@pytest.mark.parametrize(
    "records",
    [
        record(b"size", b"9" * 5000),  # more digits than Python makes a number of
        record(b"size", b"9" * 21),
        record(b"size", b"-1"),
        record(b"size", b""),
        b"9" * 30 + b" path=a.jpg\n",
        b"99 path=a.jpg\n",  # longer than the header
        b"3 path=a.jpg\n",
        b"0 path=a.jpg\n",
        b"-8 a=b\n",
        b"path=a.jpg\n",
        record(b"path", b"a.jpg")[:-1] + b"x",
    ],
)
def test_records_that_cannot_be_read_refuse_the_shard(records: bytes) -> None:
    with pytest.raises(UserError, match=r"^s\.tar: damaged extended header \(at byte [0-9,]+\)"):
        index_shard(pax(records), "s.tar")


@pytest.mark.parametrize(
    "field",
    [b"77777777777\0", b"777777777777", b"\x80" + b"\xff" * 11, b"\x80" + bytes(3) + b"\x7f" * 8],
    ids=["octal", "octal without an end", "base-256", "base-256 of 64 bits"],
)
def test_a_size_beyond_the_end_is_found(field: bytes, make_tar: MakeTar) -> None:
    shard = bytearray(make_tar(some_members(), form=tarfile.GNU_FORMAT))
    offset = header_offsets(shard)[4]
    shard[offset + 124 : offset + 136] = field
    set_checksum(shard, offset)
    with pytest.raises(UserError, match=r"^s\.tar: it is truncated: '2\.jpg' should reach byte "):
        index_shard(bytes(shard), "s.tar")


@pytest.mark.parametrize("field", [b"\xff" * 12, b"-0000000007\0", b"0000000x000\0"])
def test_a_size_that_is_no_number_is_found(field: bytes, make_tar: MakeTar) -> None:
    shard = bytearray(make_tar(some_members()))
    shard[124:136] = field
    set_checksum(shard, 0)
    with pytest.raises(UserError, match=r"^s\.tar: not a tar header"):
        index_shard(bytes(shard), "s.tar")


@pytest.mark.parametrize("text", [b"cat", b"", b"-2", b"1.5", b"9" * 30])
def test_a_label_that_is_no_number_is_named(text: bytes, make_tar: MakeTar) -> None:
    shard = make_tar([("a.jpg", b"1"), ("a.cls", b"3"), ("b.jpg", b"1"), ("b.cls", text)])
    with pytest.raises(UserError, match=r"s\.tar: the label of 'b'"):
        read_labels(shard, index_shard(shard, "s.tar"), "s.tar")


def test_labels_may_end_with_a_newline(make_tar: MakeTar) -> None:
    shard = make_tar([("a.jpg", b"1"), ("a.cls", b"12\n")])
    assert read_labels(shard, index_shard(shard, "s.tar"), "s.tar").tolist() == [12]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def header_offsets(shard: bytes | bytearray) -> Sequence[int]:
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        return [member.offset for member in tar.getmembers()]


def set_checksum(shard: bytearray, offset: int) -> None:
    shard[offset + 148 : offset + 156] = b" " * 8
    shard[offset + 148 : offset + 156] = b"%06o\0 " % int(np.sum(np.frombuffer(shard[offset : offset + 512], np.uint8)))
