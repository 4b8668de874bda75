"""The commands that the pages show have the keys that they name, also those that no test runs."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.command_line import BadInput
from cluster.submission import submission_of
from pipelines.config import compose
from ssl_core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
KEYS_OF = {"preflight": "pretrain"}
_COMMAND = re.compile(r"python -m (pipelines\.|cluster\.submit )(\w+)((?: +[^\s`]+)*)")


def shown(text: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Who runs it, command and overrides of each that a page shows.

    What stands for something else (`…`, `<folder>`) is left out.
    """
    found: list[tuple[str, str, tuple[str, ...]]] = []
    for way, command, words in _COMMAND.findall(re.sub(r" *\\\n +", " ", text)):  # a line that goes on
        given = re.split(r" {2,}|#", words.strip().replace("$PWD", "/here"))[
            0
        ].split()  # after two spaces there are remarks
        found.append((way, command, tuple(word for word in given if re.fullmatch(r"[a-z_.]+=[^<>…|\[]+", word))))
    return found


def handed_on(command: str, words: Sequence[str]) -> Sequence[str]:
    """What cluster.submit hands on; raises BadInput where it refuses a word."""
    left_out = () if any(word.startswith("storage=") for word in words) else ("storage=/mnt/runs",)
    return submission_of([command, *words, *left_out], {}).overrides


def unknown(text: str) -> list[str]:
    """What is wrong with the keys."""
    found: list[str] = []
    for way, command, words in dict.fromkeys(shown(text)):
        try:
            compose(KEYS_OF.get(command, command), words if way == "pipelines." else handed_on(command, words))
        except (UserError, BadInput) as error:
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
    assert unknown("python -m cluster.submit pretrain method=mae \\\n    data.trian=x") != []
    assert unknown("python -m cluster.submit pretrain method=mae retrys=3") != []
    assert len(shown((ROOT / "docs/guides.md").read_text(encoding="utf-8"))) > 12
