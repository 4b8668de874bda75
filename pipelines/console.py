"""What a person sees: `--help`, the one-line error, the exit status, the live line.

Nothing heavy is imported here, so that `--help` and errors in the command line cost a fraction of a second.
"""

import sys
import time
import traceback
from collections.abc import Callable
from importlib.resources import files
from typing import TextIO

from pipelines.config import groups_of
from ssl_core.errors import NonFiniteLoss, Resumable, UserError

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_RESUMABLE, EXIT_INTERRUPTED = 0, 1, 2, 75, 130


def help_text(command: str, doc: str) -> str:
    """The command's own words, then its keys with their defaults, straight from the YAML that defines them."""
    tree = files("configs")
    lines = [doc.strip(), "", f"Keys and defaults (configs/{command}.yaml), set as key=value:", ""]
    lines.append(tree.joinpath(f"{command}.yaml").read_text(encoding="utf-8").strip())
    for group in groups_of(command):
        if tree.joinpath(group).is_dir():
            options = sorted(
                entry.name[:-5] for entry in tree.joinpath(group).iterdir() if entry.name.endswith(".yaml")
            )
            lines += ["", f"{group}= one of: {', '.join(options)}"]
    lines += ["", "debug=true shows the traceback of an error."]
    return "\n".join(lines)


def run_command(
    command: str, doc: str | None, main: Callable[[list[str]], None], *, keys_of: str | None = None
) -> None:
    """Run a command's `main` with the command line's overrides and leave with its exit status.

    Args:
        command: its name.
        doc: what `--help` says first.
        main: takes the overrides.
        keys_of: the command whose keys it takes; default: its own.

    0: done. 1: failed. 2: bad input, said in one line. 75: stopped, the same command continues it. 130: interrupted.
    """
    overrides = sys.argv[1:]
    if any(word in ("-h", "--help") for word in overrides):
        print(help_text(keys_of or command, doc or ""))
        sys.exit(EXIT_OK)
    debug = "debug=true" in overrides
    try:
        main([word for word in overrides if not word.startswith("debug=")])
    except (UserError, Resumable, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"{command}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(_status_of(error))
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr, flush=True)
        sys.exit(EXIT_INTERRUPTED)


def _status_of(error: UserError | Resumable | OSError) -> int:
    if isinstance(error, UserError):
        return EXIT_BAD_INPUT
    if isinstance(error, NonFiniteLoss):  # the same command would meet it again: nobody shall submit it again
        return EXIT_FAILED
    return EXIT_RESUMABLE if isinstance(error, Resumable) else EXIT_FAILED


def say(text: str) -> None:
    """Print a line to standard output, at once."""
    print(text, flush=True)


class LiveLine:
    """One line that rewrites itself on a terminal; plain lines every `every_seconds` where it is piped."""

    def __init__(self, stream: TextIO | None = None, *, every_seconds: float = 10.0) -> None:
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._every = 0.1 if self._terminal else every_seconds
        self._last = 0.0
        self._width = 0

    def show(self, text: str, *, force: bool = False) -> None:
        """Show `text` as the present state; dropped where the last one is younger than the interval."""
        now = time.monotonic()
        if not force and now - self._last < self._every:
            return
        self._last = now
        if self._terminal:
            self._stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """End the line on a terminal."""
        if self._terminal and self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0


def duration(seconds: float) -> str:
    """Seconds as people say them: `48 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
