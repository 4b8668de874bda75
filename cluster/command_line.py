"""`key=value` for the commands of this package, and how they end: one line on standard error, and an exit status.

The words and the statuses are those of `pipelines`; nothing heavy is imported, since `--help` must cost nothing.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_RESUMABLE, EXIT_INTERRUPTED = 0, 1, 2, 75, 130

Keys = Mapping[str, Callable[[str], Any]]  # what makes a value of a key's text; ValueError says what it expected


class BadInput(ValueError):
    """What is wrong, where, and what to do, in one line."""


def parsed(words: Sequence[str], keys: Keys) -> dict[str, Any]:
    """The values of `key=value` words.

    Raises:
        BadInput: a word that is none, an unknown key, or a value that its key cannot take.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, text = split(word)
        if key not in keys:
            raise BadInput(f"unknown key {key}: {nearest(key, keys)}")
        values[key] = value_of(key, text, keys)
    return values


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint: the one that was meant, or all there are."""
    known = list(known)
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def split(word: str) -> tuple[str, str]:
    """Key and text of `key=text`; raises BadInput where it is none."""
    key, equals, text = word.partition("=")
    if not equals or not key or key.startswith("-"):
        raise BadInput(f"cannot read {word!r}: write key=value (--help lists the keys)")
    return key, text


def value_of(key: str, text: str, keys: Keys) -> Any:
    """The value that a key's text stands for; raises BadInput where it stands for none."""
    try:
        return keys[key](text)
    except ValueError as error:
        raise BadInput(f"{key}={text} has the wrong type: expected {error}") from None


def truth(text: str) -> bool:
    """`true` or `false`."""
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def count(text: str) -> int:
    """A whole number of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("a whole number above zero")
    return int(text)


def count_from_zero(text: str) -> int:
    """A whole number of at least zero."""
    if not text.isdecimal():
        raise ValueError("a whole number")
    return int(text)


def names(text: str) -> list[str]:
    """`[a,b]`, `a,b` or `a`."""
    inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return [name for name in (part.strip() for part in inside.split(",")) if name]


def say(text: str) -> None:
    """A line on standard output, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run_command(name: str, doc: str | None, main: Callable[[list[str]], int]) -> None:
    """Run `main` with the words of the command line, and leave with its exit status.

    BadInput is status 2, RuntimeError and OSError are 1, each said in one line; an interrupt is 130.
    """
    words = sys.argv[1:]
    if any(word in ("-h", "--help") for word in words):
        say((doc or "").strip())
        sys.exit(EXIT_OK)
    try:
        status = main(words)
    except (BadInput, RuntimeError, OSError) as error:
        sys.stderr.write(f"{name}: {' '.join(str(error).split())}\n")
        status = EXIT_BAD_INPUT if isinstance(error, BadInput) else EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted\n")
        status = EXIT_INTERRUPTED
    sys.stdout.flush()
    sys.exit(status)
