"""Commands from outside: exit statuses, one line for a mistake, and help without anything heavy."""

import io
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.console import LiveLine, duration, help_text, run_command
from ssl_core.errors import NonFiniteLoss, Resumable, UserError

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "mlflow", "hydra", "timm", "sklearn", "cv2", "pyarrow")
COMMANDS = sorted(
    path.stem for path in (ROOT / "pipelines").glob("*.py") if re.search(r"^    run_command\(", path.read_text(), re.M)
)

KEYS_OF = {"preflight": "pretrain"}  # a command that takes the keys of another one


def command(name: str, *overrides: str) -> tuple[int, str, str, set[str]]:
    """Exit status, what it said, and which heavy packages it had imported by then."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['pipelines.{name}', *{list(overrides)!r}]\n"
        "try:\n"
        f"    runpy.run_module('pipelines.{name}', run_name='__main__')\n"
        "finally:\n"
        f"    print('IMPORTED', *[one for one in {HEAVY!r} if one in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    out, _, imported = done.stdout.rpartition("IMPORTED")
    return done.returncode, out, done.stderr, set(imported.split())


def test_commands_are_found() -> None:
    assert {"pack", "pretrain", "probe", "register", "models", "pull", "embed", "runs"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_the_keys_and_imports_nothing_heavy(name: str) -> None:
    status, out, err, imported = command(name, "--help")
    assert (status, err, imported) == (0, "", set())
    assert (ROOT / "configs" / f"{KEYS_OF.get(name, name)}.yaml").read_text().strip() in out
    assert f"pipelines.{name}" in out


def test_help_lists_the_options_of_groups() -> None:
    text = help_text("pretrain", "Words.")
    assert text.startswith("Words.")
    assert re.search(r"^model= one of: .*resnet50", text, re.M)
    assert re.search(r"^method= one of: .*simclr", text, re.M)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_is_one_line_before_anything_heavy(name: str) -> None:
    status, out, err, imported = command(name, "sotrage=x")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith(f"{name}: unknown key sotrage: ")
    assert imported <= {"hydra"}


def ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException | None, *words: str
) -> tuple[Any, str, list[list[str]]]:
    given: list[list[str]] = []

    def main(overrides: list[str]) -> None:
        given.append(overrides)
        if error is not None:
            raise error

    monkeypatch.setattr(sys, "argv", ["command", *words])
    try:
        run_command("pack", "Words.", main)
    except SystemExit as ending:
        return ending.code, capsys.readouterr().err, given
    return None, capsys.readouterr().err, given


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (None, None, ""),
        (UserError("a is b:\n  do c"), 2, "pack: a is b: do c\n"),
        (Resumable("stopped after step 3"), 75, "pack: stopped after step 3\n"),
        (NonFiniteLoss("loss at step 3 is nan"), 1, "pack: loss at step 3 is nan\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "pack: [Errno 2] No such file: 'x'\n"),
        (KeyboardInterrupt(), 130, "pack: interrupted\n"),
        (SystemExit(3), 3, ""),
    ],
    ids=["done", "bad input", "resumable", "diverged", "system", "interrupted", "its own"],
)
def test_exit_status_and_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException | None,
    status: int | None,
    says: str,
) -> None:
    assert ended(monkeypatch, capsys, error, "a=1", "debug=false") == (status, says, [["a=1"]])


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, said, given = ended(monkeypatch, capsys, UserError("a is b"), "debug=true", "x=1")
    assert (status, given) == (2, [["x=1"]])
    assert "Traceback" in said
    assert said.endswith("pack: a is b\n")


def test_a_fault_of_ours_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError):
        ended(monkeypatch, capsys, ZeroDivisionError())


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


def test_a_pipe_gets_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    move, stream = at(monkeypatch), io.StringIO()
    line = LiveLine(stream)
    for text in ("a", "b", "c"):
        line.show(text)
        move(6)
    line.show("d")
    line.show("end", force=True)
    line.close()
    assert stream.getvalue() == "a\nc\nend\n"


def test_a_terminal_gets_one_line_that_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    move, stream = at(monkeypatch), Terminal()
    line = LiveLine(stream)
    for text in ("a long one", "short"):
        line.show(text)
        move(1)
    line.close()
    line.close()
    assert stream.getvalue() == "\ra long one\rshort     \n"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (11_100, "3 h 05 min")]
)
def test_durations_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
