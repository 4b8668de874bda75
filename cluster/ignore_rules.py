"""The rules of `.gitignore` files, as git reads them: which paths below a folder are left out.

git itself may not be there where a job is submitted, and outside of a checkout it has nothing to say; Ray's own reading
of these files is a part of `import ray`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

_SET = re.compile(r"(?P<not>[!^]?)(?P<members>\]?(?:\[:\w+:\]|\\.|[^\]\\])*)\]", re.DOTALL)  # after its "["
_MEMBER = re.compile(r"\[:(\w+):\]|(\\.|.)-(\\.|.)|(\\.|.)", re.DOTALL)
_KINDS = {  # of POSIX, in ASCII
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r" \t-\r",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line: whether a path below the line's folder is left out, or (`!`) taken in again."""

    folder: str  # "" or "a/b/", of the file that the line is in
    pattern: "re.Pattern[str]"
    takes_in: bool
    folders_only: bool

    def matches(self, path: str, *, is_folder: bool) -> bool:
        """Whether the line speaks of `path`, which is relative to the top, with `/`."""
        if not path.startswith(self.folder) or (self.folders_only and not is_folder):
            return False
        return self.pattern.fullmatch(path, len(self.folder)) is not None


def rules_of(lines: Iterable[str], folder: str = "") -> list[Rule]:
    """The rules of an ignore file.

    Args:
        lines: of the file.
        folder: the file's own, relative to the top: "" or "a/b/".
    """
    return [rule for line in lines if (rule := _rule(line.rstrip("\r\n"), folder))]


def left_out(path: str, rules: Sequence[Rule], *, is_folder: bool) -> bool:
    """Whether the last rule that speaks of a path leaves it out; what lies in a folder that is left out, is too."""
    for rule in reversed(rules):
        if rule.matches(path, is_folder=is_folder):
            return not rule.takes_in
    return False


def _rule(line: str, folder: str) -> Rule | None:
    text = re.sub(r"(?<!\\) +$", "", line)
    if not text or text.startswith("#"):
        return None
    takes_in = text.startswith("!")
    text = text.removeprefix("!")
    folders_only = text.endswith("/")
    text = text.removesuffix("/")
    if not text:
        return None
    anchored = "/" in text
    return Rule(
        folder=folder,
        pattern=_compiled(text.removeprefix("/") if anchored else f"**/{text}"),
        takes_in=takes_in,
        folders_only=folders_only,
    )


@lru_cache(maxsize=1000)
def _compiled(glob: str) -> "re.Pattern[str]":
    """A pattern for whole paths: `*` and `?` stay within a name, `**` as a whole name stands for any folders."""
    parts = glob.split("/")
    last = len(parts) - 1
    written = ""
    for i, part in enumerate(parts):
        if part == "**" and i == last:
            written += ".+" if i else ".*"
        elif part == "**":
            written += "(?:[^/]+/)*"
        else:
            written += _name_pattern(part) + ("/" if i < last else "")
    return re.compile(written, re.DOTALL)


def _name_pattern(glob: str) -> str:
    written, i = "", 0
    while i < len(glob):
        letter = glob[i]
        i += 1
        if letter == "\\" and i < len(glob):
            written += re.escape(glob[i])
            i += 1
        elif letter == "*":
            written += "[^/]*"
        elif letter == "?":
            written += "[^/]"
        elif letter == "[" and (found := _SET.match(glob, i)):
            written += _set_pattern(found["members"], negated=bool(found["not"]))
            i = found.end()
        else:
            written += re.escape(letter)
    return written


def _set_pattern(members: str, *, negated: bool) -> str:
    """One letter of those between brackets, or none of them; of a range that runs backwards git takes the first."""
    written = ""
    for kind, first, last, single in _MEMBER.findall(members):
        if kind:
            written += _KINDS.get(kind, "")
        elif single or first[-1] > last[-1]:
            written += re.escape((single or first)[-1])
        else:
            written += f"{re.escape(first[-1])}-{re.escape(last[-1])}"
    if not written:
        return "[^/]" if negated else "(?!)"
    return f"(?!/)[{'^' if negated else ''}{written}]"
