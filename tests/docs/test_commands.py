"""The commands that the pages show have the keys that they name, also those that no test runs."""

import re
from pathlib import Path

import pytest

from pipelines.config import compose
from ssl_core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
KEYS_OF = {"preflight": "pretrain"}
_COMMAND = re.compile(r"python -m pipelines\.(\w+)((?: +[^\s`]+)*)")


def shown(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Command and overrides of each that a page shows; what stands for something else (`…`, `<folder>`) is left out."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for command, words in _COMMAND.findall(text):
        given = re.split(r" {2,}|#", words.strip())[0].split()  # after two spaces there are remarks
        found.append((command, tuple(word for word in given if re.fullmatch(r"[a-z_.]+=[^<>…|\[]+", word))))
    return found


def unknown(text: str) -> list[str]:
    """What is wrong with the keys."""
    found: list[str] = []
    for command, words in dict.fromkeys(shown(text)):
        try:
            compose(KEYS_OF.get(command, command), words)
        except UserError as error:
            found.append(f"{command} {' '.join(words)}: {error}")
    return found


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_keys_exist(page: Path) -> None:
    assert unknown(page.read_text(encoding="utf-8")) == []


def test_a_key_that_is_not_there_is_found() -> None:
    assert unknown("python -m pipelines.pretrain data.trian=x method=simclr   a remark") != []
    assert unknown("python -m pipelines.pretrain method=simsalabim") != []
    assert len(shown((ROOT / "docs/guides.md").read_text(encoding="utf-8"))) > 12
