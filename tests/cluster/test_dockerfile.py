"""The Dockerfile, as far as it can be read: nothing here builds an image."""

import re
from pathlib import Path

import pytest

from tests.test_packaging import PACKAGES


@pytest.fixture(scope="module")
def instructions(root: Path) -> list[tuple[str, str]]:
    """Name and arguments of each, lines joined, comments left out."""
    text = (root / "cluster/Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def arguments(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for one, rest in instructions if one == name]


def sources(instructions: list[tuple[str, str]]) -> set[str]:
    """What is copied from the checkout."""
    copies = [rest.split() for rest in arguments(instructions, "COPY") if not rest.startswith("--from=")]
    return {word for words in copies for word in words[:-1]}


def test_it_ends_as_a_user_with_a_number(instructions: list[tuple[str, str]]) -> None:
    last_stage = instructions[max(i for i, (name, _) in enumerate(instructions) if name == "FROM") :]
    assert arguments(last_stage, "USER") == ["1000:1000"]
    names = [name for name, _ in last_stage]
    assert not {"RUN", "COPY", "ADD"} & set(names[names.index("USER") :])


def test_versions_are_pinned(instructions: list[tuple[str, str]]) -> None:
    (base, *_) = arguments(instructions, "ARG")
    assert re.fullmatch(r"PYTHON=python:3\.1[1-3]\.\d+-slim-[a-z]+", base)
    assert set(arguments(instructions, "FROM")) == {"${PYTHON} AS build", "${PYTHON}"}
    installs = [rest for rest in arguments(instructions, "RUN") if "pip install" in rest]
    assert len(installs) == 2
    assert all("-c constraints.txt" in rest for rest in installs)
    assert installs[-1].endswith("-c constraints.txt .")


def test_what_it_copies_is_there_and_is_what_is_packaged(instructions: list[tuple[str, str]], root: Path) -> None:
    copied = sources(instructions)
    assert copied == {*PACKAGES, "constraints.txt", "pyproject.toml", "README.md", "LICENSE"}
    assert [name for name in copied if not (root / name).exists()] == []
    sent = (root / "cluster/Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    assert "*" in sent
    assert {line[1:] for line in sent if line.startswith("!")} == copied


def test_triton_finds_a_compiler(instructions: list[tuple[str, str]]) -> None:
    last_stage = instructions[max(i for i, (name, _) in enumerate(instructions) if name == "FROM") :]
    (run,) = arguments(last_stage, "RUN")
    assert {"gcc", "libc6-dev"} <= set(run.split())


def test_nothing_secret_goes_in(instructions: list[tuple[str, str]]) -> None:
    said = " ".join(f"{name} {rest}" for name, rest in instructions)
    assert not re.search(r"KEY|SECRET|TOKEN|PASSW|ADD |COPY \. ", said)
