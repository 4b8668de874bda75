"""The archive of a folder: what is left out, what it is called, and when it is too large."""

import os
import subprocess
from pathlib import Path

import pytest

from cluster.command_line import BadInput
from cluster.package import files_of, pack


def files_in(folder: Path, *exclude: str) -> set[str]:
    return set(files_of(folder, exclude))


def test_a_package_respects_what_is_ignored(tmp_path: Path) -> None:
    for path in (
        *("train.py", "data/raw.bin", "data/keep.csv", "notes/a.log", "notes/deep/b.log", "notes/deep/keep.log"),
        *(".git/config", "pkg/.git", ".venv/bin/python", "pkg/__pycache__/x.pyc", ".env", "keys/id.pem", "big.bin"),
        *("rehearsal/environment.sh", "rehearsal/auth_token", "build/out", "pkg/build/in.py", "secret ", "#hash"),
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    (tmp_path / ".gitignore").write_text("*.log\n!keep.log\n/build/\ndata/*\n!data/keep.csv\n\\#hash\n")
    (tmp_path / "notes/deep/.gitignore").write_text("keep.log\n")
    (tmp_path / ".rayignore").write_text("big.bin\n")
    (tmp_path / "link.py").symlink_to("train.py")
    (tmp_path / "linked").symlink_to(tmp_path / "pkg", target_is_directory=True)
    (tmp_path / "dangling").symlink_to("nowhere")
    kept = {".gitignore", ".rayignore", "notes/deep/.gitignore", "train.py", "link.py", "data/keep.csv", "secret "}
    assert files_in(tmp_path) == {*kept, "pkg/build/in.py"}
    assert files_in(tmp_path, "pkg/", "secret*") == kept - {"secret "}


PATTERNS = [
    "*.log",
    "!keep.log",
    "/build",
    "doc/**/x",
    "**/deep/",
    "a/**",
    "a?c",
    "doc/p*x",
    "[ab].t",
    "[!a].u",
    "sp\\ ",
    "x y ",
    "d/",
    "v[[:digit:]]",
    "[[:alpha:]_].t",
    "[![:lower:]].u",
    "[z-a]x",
    "[!z-a]x",
    "[z-ab-c]x",
    "[]a]x",
    "[a\\]]x",
    "[^]]x",
    "[[:nothing:]]x",
]
PATHS = [
    *(
        "a.log",
        "keep.log",
        "d/keep.log",
        "build",
        "d/build",
        "doc/x",
        "doc/p/x",
        "doc/p/q/x",
        "x",
        "deep/f",
        "d/deep/f",
    ),
    *("a/f", "a/b/c", "abc", "ac", "a/c", "a.t", "c.t", "a.u", "b.u", "sp ", "x y", "d", "e/d/f", "e/build/g"),
    *("v1", "vx", "1.t", "_.t", "B.u", "ax", "bx", "zx", "]x", "-x", ":x"),
]


def test_the_rules_are_those_of_git(tmp_path: Path) -> None:
    """Each pattern alone, and all at once, against every path."""
    for lines in (*([one] for one in PATTERNS), PATTERNS, PATTERNS[::-1]):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for path in PATHS:
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.is_dir():
                place.write_text("")
        (folder / ".gitignore").write_text("\n".join(lines) + "\n")
        git = ["git", "-C", str(folder), "-c", "core.excludesFile=/dev/null"]
        subprocess.run([*git, "init", "-q"], check=True)
        listed = subprocess.run(
            [*git, "ls-files", "-oz", "--exclude-standard"], check=True, capture_output=True, text=True
        )
        assert files_in(folder) == {name for name in listed.stdout.split("\0") if name}, lines


def test_a_folder_of_a_checkout_keeps_to_the_rules_of_those_above(tmp_path: Path) -> None:
    for path in ("sub/deep/train.py", "sub/deep/keep.log", "sub/deep/big.bin", "sub/deep/data/x", "sub/deep/out/y"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    (tmp_path / ".gitignore").write_text("*.bin\n*.log\n/sub/deep/data\n/out\n")
    (tmp_path / "sub/.gitignore").write_text("!keep.log\n")
    folder = tmp_path / "sub/deep"
    everything = {"train.py", "keep.log", "big.bin", "data/x", "out/y"}
    assert files_in(folder) == everything
    (tmp_path / ".git").mkdir()
    assert files_in(folder) == {"train.py", "keep.log", "out/y"}
    assert files_in(folder, "/out") == {"train.py", "keep.log"}
    (folder / ".git").mkdir()  # a checkout in another one
    assert files_in(folder) == everything


def test_files_with_keys_are_never_sent(tmp_path: Path) -> None:
    for name in (".envrc", ".pypirc", ".git-credentials", "id_rsa", "id_ecdsa", "id_ed25519", "id_rsa.pub"):
        (tmp_path / name).write_text("x")
    assert files_in(tmp_path) == {"id_rsa.pub"}


def test_the_same_files_are_the_same_package(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "run.sh").chmod(0o755)
    first = pack(tmp_path)
    os.utime(tmp_path / "run.sh", (0, 1_000_000_000))
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/a.pyc").write_text("x")
    again = pack(tmp_path)
    assert (again.name, again.size) == (first.name, first.size)
    (tmp_path / "run.sh").chmod(0o644)
    assert pack(tmp_path).name != first.name
    assert first.uri == f"gcs://{first.name}"


def test_what_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/a.bin").write_bytes(os.urandom(3 * 2**20))
    (tmp_path / "train.py").write_text("x")
    with pytest.raises(BadInput, match=r"more than the 1 MiB .* largest are weights \(3\.0 MiB\), train\.py"):
        pack(tmp_path, limit_bytes=2**20)
    assert pack(tmp_path, ["weights/"], limit_bytes=2**20).files == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(BadInput, match="would send all of it"):
        pack(tmp_path)
    with pytest.raises(BadInput, match="is not a folder"):
        pack(tmp_path / "none")
