"""What a cluster is asked to run: overrides as they were, a run that can be found again, and no secret that shows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.command_line import BadInput
from cluster.jobs_api import Token, address_of
from cluster.submission import COMMANDS, KEYS, submission_of
from pipelines.config import compose
from pipelines.mlflow_connection import masked

TOKEN, SECRET = "the-token-of-the-cluster", "s3cr3t-value-of-a-key"
NASTY = [
    "data.train=/data/two words/it's",
    'name="quoted"',
    "model.arguments.channels=[8,8,16,16]",
    "data.weights=[2, 0.5]",
    "init=$(touch /tmp/owned)",
    "register=`id`;echo$IFS&&false|cat>x #no",
    "probe.train=*?{a,b}~!\\n\ttab",
    "seed=\n1",
    "tracking.note=τ→✓",
]


def job_of(*words: str, **environment: str) -> Any:
    return submission_of(["pretrain", "storage=/mnt/runs", *words], environment)


def keys_of_commands(root: Path) -> dict[str, set[str]]:
    """The keys at the top of each command's values, of those commands that are there."""
    there = [name for name in COMMANDS if (root / f"configs/{name}.yaml").exists()]
    assert {"pretrain", "probe"} <= set(there)
    return {name: set(compose(name, [])) for name in there}


def test_every_override_reaches_the_command_as_it_was(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    python.chmod(0o755)
    job = job_of(*NASTY)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(job.entrypoint, shell=True, check=True, capture_output=True, text=True, env=environment)
    assert json.loads(done.stdout) == ["-m", "pipelines.pretrain", "storage=/mnt/runs", *NASTY, "ray.address=auto"]
    assert not Path("/tmp/owned").exists()


def test_a_run_has_a_name_so_that_another_attempt_continues_it() -> None:
    job = job_of()
    assert f"name={job.id}" in job.overrides
    assert re.fullmatch(r"pretrain-\d{8}-\d{6}-[0-9a-f]{4}", job.id)
    assert f"name={job.id}" in job_of("name=null", f"id={job.id}").overrides
    assert [word for word in job_of("name=first").overrides if word.startswith("name=")] == ["name=first"]
    assert [job.attempt(number) for number in (1, 2, 3)] == [job.id, f"{job.id}-2", f"{job.id}-3"]
    assert not [word for word in submission_of(["probe", "run=first"]).overrides if word.startswith("name=")]


def test_the_cluster_is_joined_where_the_command_can_join_one(root: Path) -> None:
    """The table says of each command what its YAML says."""
    assert "ray.address=auto" in job_of().overrides
    assert [word for word in job_of("ray.address=local").overrides if "ray" in word] == ["ray.address=local"]
    for name, keys in keys_of_commands(root).items():
        assert ("ray" in keys) == COMMANDS[name].joins, name
        assert ("name" in keys) == COMMANDS[name].writes_runs, name


def test_no_key_of_a_command_is_taken_for_one_of_the_submission(root: Path) -> None:
    for name, keys in keys_of_commands(root).items():
        assert not keys & KEYS.keys()
        for key in keys:
            submission_of([name, "storage=/mnt/runs", f"{key}=/x"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "unknown command: known are pretrain, tune, probe, preflight"),
        (["pretrian"], "unknown pretrian: did you mean pretrain?"),
        (["pretrain", "adress=http://a"], "unknown key adress: did you mean address?"),
        (["pretrain", "--name", "x"], "cannot read '--name': write key=value"),
        (["pretrain", "retries=many"], "retries=many has the wrong type: expected a whole number"),
        (["pretrain", "wait=no"], "wait=no has the wrong type: expected true or false"),
        (["pretrain", "retries=1", "wait=false", "storage=/r"], "retries= needs wait=true"),
        (["pretrain"], "storage=runs lies in the job's own folder"),
        (["tune", "storage=runs"], "storage=runs lies in the job's own folder"),
        (["pretrain", "storage=/r", "checkpoints=kept"], "checkpoints=kept lies in the job's own folder"),
        (["tune", "storage=/r", "checkpoints=./kept/"], "checkpoints=./kept/ lies in the job's own folder"),
        (["pretrain", "storage=/r", "id=a/b"], "id=a/b cannot be a job's"),
        (["pretrain", "storage=/r", "env=[NOT_HERE]"], "NOT_HERE is not in the environment here"),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=re.escape(said)):
        submission_of(words, {})


def test_a_plan_needs_no_shared_folder() -> None:
    assert "plan=true" in submission_of(["pretrain", "plan=true", "checkpoints=kept"], {}).overrides


@pytest.mark.parametrize("place", ["null", "", "/mnt/checkpoints", "s3://bucket/prefix"])
def test_checkpoints_are_kept_beside_the_run_or_where_they_last(place: str) -> None:
    assert f"checkpoints={place}" in job_of(f"checkpoints={place}").overrides


def test_values_never_show() -> None:
    job = job_of("env=[AWS_SECRET_ACCESS_KEY,PLAIN]", AWS_SECRET_ACCESS_KEY=SECRET, PLAIN="1")
    assert job.environment == {"AWS_SECRET_ACCESS_KEY": SECRET, "PLAIN": "1"}
    assert job.secret_names == ["AWS_SECRET_ACCESS_KEY"]
    assert SECRET not in repr(job) + job.entrypoint
    assert TOKEN not in repr(Token(value=TOKEN, source="here"))
    with pytest.raises(BadInput) as caught:
        job_of(f"env=[KEY={SECRET}]")
    assert SECRET not in str(caught.value)
    with pytest.raises(BadInput, match="user or password") as caught:
        address_of(f"http://me:{SECRET}@head:8265")
    assert SECRET not in str(caught.value)


URIS_WITH_A_PASSWORD = [
    f"https://me:{SECRET}@mlflow.example",
    f"mysql://:{SECRET}@db/mlflow",
    f"postgresql://db/mlflow?user=me&password={SECRET}",
    f"postgresql://db/mlflow?sslPassword={SECRET}",
]
URIS_WITHOUT = [
    "https://me@mlflow.example",
    "postgresql://me@db:5432/mlflow?sslmode=require",
    "http://h:5000/?a=password",
]


@pytest.mark.parametrize("uri", URIS_WITH_A_PASSWORD)
def test_a_password_in_a_uri_is_kept_from_the_command_and_said_of_the_environment(uri: str) -> None:
    with pytest.raises(BadInput, match=r"tracking\.uri= has a password in it") as caught:
        job_of(f"tracking.uri={uri}")
    assert SECRET not in str(caught.value)
    assert masked(uri) != uri  # the commands see it too
    assert job_of("env=[MLFLOW_TRACKING_URI]", MLFLOW_TRACKING_URI=uri).secret_names == ["MLFLOW_TRACKING_URI"]


@pytest.mark.parametrize("uri", URIS_WITHOUT)
def test_a_uri_without_a_password_passes(uri: str) -> None:
    assert f"tracking.uri={uri}" in job_of(f"tracking.uri={uri}").overrides
    assert job_of("env=[MLFLOW_TRACKING_URI]", MLFLOW_TRACKING_URI=uri).secret_names == []
