"""The commands of a page of docs: fenced blocks, by section, and which of them say that no test runs them."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NOT_RUN = "# not run by"
"""How the first line of a block begins that no test runs."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELL = ("", "sh", "bash", "console")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block with commands."""

    heading: str  # of its section; "" before the first
    text: str

    @property
    def run(self) -> bool:
        """Whether a test has to run it."""
        return not self.text.startswith(NOT_RUN)

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line; lines that end with a backslash go on."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [shlex.split(line, comments=True) for line in lines if line.split("#")[0].strip()]


def blocks_of(page: Path) -> list[Block]:
    """All blocks with commands, in order."""
    found: list[Block] = []
    for section in re.split(r"^(?=## )", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
        heading = section.partition("\n")[0].removeprefix("## ") if section.startswith("## ") else ""
        for language, text in _FENCE.findall(section):
            if language in _SHELL and re.search(r"^(python -m|mlflow|make|export) ", text, re.MULTILINE):
                found.append(Block(heading=heading, text=text))
    return found


def module_of(command: Sequence[str]) -> str | None:
    """`pipelines.pack` of `python -m pipelines.pack …`."""
    return command[2] if list(command[:2]) == ["python", "-m"] else None
