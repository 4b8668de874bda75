"""Words and statuses of this package's commands; their help costs nothing."""

import resource
import subprocess
import sys

import pytest

from cluster.command_line import BadInput, Keys, count, names, parsed, truth

KEYS: Keys = {"nodes": count, "mlflow": truth, "env": names, "folder": str}


def test_words_become_values() -> None:
    assert parsed(["nodes=2", "mlflow=false", "env=[A, B]", "folder=a=b"], KEYS) == {
        "nodes": 2,
        "mlflow": False,
        "env": ["A", "B"],
        "folder": "a=b",
    }
    assert [names(text) for text in ("A,B", "A", "[]", "")] == [["A", "B"], ["A"], [], []]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("nods=2", "unknown key nods: did you mean nodes?"),
        ("x=2", "unknown key x: known are nodes, mlflow, env, folder"),
        ("nodes=0", "nodes=0 has the wrong type: expected a whole number above zero"),
        ("mlflow=yes", "mlflow=yes has the wrong type: expected true or false"),
        ("nodes", "cannot read 'nodes': write key=value"),
    ],
)
def test_what_is_wrong_is_one_line(word: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parsed([word], KEYS)
    assert str(caught.value).startswith(said)


def test_help_costs_nothing() -> None:
    for command in ("submit", "job", "local"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", f"cluster.{command}", "--help"], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0
        assert f"cluster.{command}" in done.stdout
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0  # of the CPU, in seconds
        heavy = (
            f"import sys, cluster.{command}; print({{'ray', 'torch', 'hydra', 'mlflow', 'boto3'}} & sys.modules.keys())"
        )
        assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stdout == "set()\n"
