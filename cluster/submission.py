"""From the words of `cluster.submit` to what a cluster is asked to run: an id, a line of shell, an environment.

The keys of the pipelines are not known here. What is checked is what would cost a run: a mistyped key of the submission
itself, a run that nobody could find again, credentials on a command line.
"""

import os
import re
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cluster.command_line import BadInput, Keys, count_from_zero, names, nearest, split, truth, value_of


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of `pipelines`: whether it writes runs, which have a name, and whether it joins the cluster."""

    writes_runs: bool
    joins: bool


COMMANDS = {
    "pretrain": Command(writes_runs=True, joins=True),
    "tune": Command(writes_runs=True, joins=True),
    "probe": Command(writes_runs=False, joins=False),
    "preflight": Command(writes_runs=False, joins=True),
}
KEYS: Keys = {
    "address": str,
    "folder": str,
    "exclude": names,
    "env": names,
    "wait": truth,
    "retries": count_from_zero,
    "id": str,
}
_CREDENTIALS = re.compile(  # user:password@ of a URL, or a parameter, as pipelines.mlflow_connection masks it
    r"(?i)://[^/@\s]*:[^/@\s]+@|[?&][^=&\s]*(?:password|passwd|secret|token)[^=&\s]*=[^&\s]"
)
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSW|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job as it was asked for; the values of `environment` are not for anybody's eyes."""

    id: str
    command: str
    overrides: Sequence[str]
    address: str | None
    folder: Path | None
    exclude: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    wait: bool
    retries: int
    nonce: str = field(default_factory=lambda: secrets.token_hex(8), repr=False)  # of this very call

    @property
    def entrypoint(self) -> str:
        """A line of shell; `exec`: signals reach the command itself, and how it ends is how the job ends."""
        return f"exec {shlex.join(['python', '-m', f'pipelines.{self.command}', *self.overrides])}"

    @property
    def secret_names(self) -> list[str]:
        """Of the environment's names, those that sound like keys, or whose value is a URL with a password."""
        return [
            name for name, value in self.environment.items() if _SECRET_NAME.search(name) or _CREDENTIALS.search(value)
        ]

    def attempt(self, number: int) -> str:
        """The id of the job when it is submitted for the n-th time, from 1."""
        return self.id if number == 1 else f"{self.id}-{number}"


def submission_of(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> Submission:
    """What the words ask for.

    Args:
        words: of the command line, the command first.
        environment: where the values of `env=` are.

    Raises:
        BadInput: an unknown command, a word that is no `key=value`, a value of the wrong kind, or a job that would lose
            its results.
    """
    command, overrides, values = _sorted_words(words)
    if "id" in values and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", values["id"]):
        raise BadInput(f"id={values['id']} cannot be a job's: use letters, digits, - and _")
    job: str = values.get("id") or f"{command}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder: str = values.get("folder", ".")
    if values.get("retries") and not values.get("wait", True):
        raise BadInput("retries= needs wait=true: it is this command that submits again")
    return Submission(
        id=job,
        command=command,
        overrides=_completed(command, overrides, job),
        address=values.get("address"),
        folder=None if folder == "null" else Path(folder).expanduser(),
        exclude=values.get("exclude", []),
        environment=_chosen(values.get("env", []), environment),
        wait=values.get("wait", True),
        retries=values.get("retries", 0),
    )


def _sorted_words(words: Sequence[str]) -> tuple[str, list[str], dict[str, Any]]:
    """The command, the words that go to it, and the values of the submission's own keys."""
    command, *rest = words or [""]
    if command not in COMMANDS:
        raise BadInput(f"unknown {command or 'command'}: {nearest(command, COMMANDS)}")
    overrides: list[str] = []
    values: dict[str, Any] = {}
    for word in rest:
        key, text = split(word)
        near = [] if "." in key else get_close_matches(key, KEYS, n=1, cutoff=0.75)
        if key in KEYS:
            values[key] = value_of(key, text, KEYS)
        elif near:
            raise BadInput(f"unknown key {key}: did you mean {near[0]}?")
        else:
            overrides.append(_sendable(word))
    return command, overrides, values


def _sendable(word: str) -> str:
    """A word that may stand on a command line which others can read."""
    if _CREDENTIALS.search(word):
        raise BadInput(
            f"{split(word)[0]}= has a password in it, which the job's log would show: pass it as an environment "
            "variable (docs/cluster.md says how)"
        )
    if re.search("[\0\ud800-\udfff]", word):
        raise BadInput(f"{split(word)[0]}= has bytes in it that are no text")
    return word


def _completed(command: str, overrides: list[str], job: str) -> list[str]:
    """With what a job on a cluster needs besides: a name by which the run is found again, and the cluster's address."""
    given = dict(split(word) for word in overrides)
    if COMMANDS[command].writes_runs:
        if given.get("plan") != "true":
            _check_places(given)
        if given.get("name", "null") in ("null", ""):
            overrides = [*(word for word in overrides if split(word)[0] != "name"), f"name={job}"]
    if COMMANDS[command].joins and "ray.address" not in given:
        overrides = [*overrides, "ray.address=auto"]
    return overrides


def _check_places(given: Mapping[str, str]) -> None:
    """Raises BadInput where what the run writes would go with the job."""
    if not given.get("storage", "").startswith("/"):
        raise BadInput(
            f"storage={given.get('storage', 'runs')} lies in the job's own folder, which goes away: give a "
            "folder that all nodes of the cluster share, as storage=/mnt/runs"
        )
    if not re.match(r"/|s3://|(null)?$", given.get("checkpoints", "")):
        raise BadInput(
            f"checkpoints={given['checkpoints']} lies in the job's own folder, which goes away: give s3://bucket/"
            "prefix or a folder that all nodes of the cluster share, or leave it out, and they are in storage="
        )


def _chosen(wanted: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    for name in wanted:
        if "=" in name:
            raise BadInput(
                f"env= takes names alone, and {name.split('=')[0]} came with a value: export it, then env=[name]"
            )
        if name not in environment:
            raise BadInput(f"env=[{name}]: {name} is not in the environment here: export it first")
    return {name: environment[name] for name in wanted}
