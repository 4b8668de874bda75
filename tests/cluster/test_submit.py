"""The command that submits: it follows a job, tries again what the same command continues, and keeps secrets."""

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster import following, job, submit
from tests.cluster.fake_cluster import TOKEN, FakeCluster, serving

SECRET = "s3cr3t-value-of-a-key"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file, the token in the environment, and no pauses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr(submit, "_FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(following, "_PAUSE_SECONDS", 0.01)
    (tmp_path / "notes.txt").write_text("hello")
    return tmp_path


SUCCEEDED = {"status": "SUCCEEDED", "driver_exit_code": 0}
RESUMABLE = {"driver_exit_code": 75}
KILLED = {"driver_exit_code": -signal.SIGKILL}
LOST = {"error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "Job supervisor actor died: …"}
NEVER_STARTED = {"error_type": "RUNTIME_ENV_SETUP_FAILURE", "message": "runtime_env setup failed:\nno space left"}


def submitted(cluster: FakeCluster, *words: str) -> int:
    return submit.main(["pretrain", "storage=/mnt/runs", "id=job", f"address={cluster.address}", *words])


@pytest.mark.parametrize(
    ("end", "status", "again"),
    [
        (SUCCEEDED, 0, False),
        (RESUMABLE, 75, True),
        (KILLED, 137, True),
        (LOST, 1, True),
        (None, 1, True),
        (NEVER_STARTED, 1, False),
        ({"driver_exit_code": 1}, 1, False),
        ({"driver_exit_code": 2}, 2, False),
        ({"status": "STOPPED"}, 75, False),
    ],
)
def test_what_the_same_command_continues_is_submitted_again(
    end: dict[str, Any] | None, status: int, again: bool, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(FakeCluster(end, SUCCEEDED)) as cluster:
        assert submitted(cluster) == status
    with serving(FakeCluster(end, SUCCEEDED)) as cluster:
        assert submitted(cluster, "retries=2") == (0 if again else status)
        assert list(cluster.jobs) == (["job", "job-2"] if again else ["job"])
        if again:
            assert "log of job-2 ·\n" in capsys.readouterr().out
            first, second = cluster.jobs.values()
            assert first["entrypoint"] == second["entrypoint"]
            assert first["runtime_env"] == second["runtime_env"]
            assert "name=job" in first["entrypoint"]
            assert len([one for one in cluster.asked if one.startswith("PUT")]) == 1  # the cluster has it already


def test_retries_end(here: Path) -> None:
    with serving(FakeCluster(KILLED, RESUMABLE, KILLED, SUCCEEDED)) as cluster:
        assert submitted(cluster, "retries=2") == 137
        assert list(cluster.jobs) == ["job", "job-2", "job-3"]


def test_a_submission_that_was_heard_and_not_answered_is_not_made_twice(here: Path) -> None:
    with serving(FakeCluster(SUCCEEDED)) as cluster:
        cluster.loses_answers = 1
        assert submitted(cluster) == 0
        assert list(cluster.jobs) == ["job"]


def test_a_proxy_without_its_server_is_waited_for(here: Path) -> None:
    with serving(FakeCluster(SUCCEEDED, SUCCEEDED)) as cluster:
        cluster.proxy_has_no_server = 3
        assert submitted(cluster, "retries=1") == 0
        assert list(cluster.jobs) == ["job"]
        assert cluster.proxy_has_no_server == 0


@pytest.mark.parametrize("end", [SUCCEEDED, KILLED])
def test_the_end_of_a_log_is_asked_for_again(
    end: dict[str, Any], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(FakeCluster(end)) as cluster:
        cluster.loses_logs = 2
        submitted(cluster)
    assert "log of job ·\n" in capsys.readouterr().out


@pytest.mark.parametrize(("end", "status", "patience"), [(LOST, 1, 600.0), (SUCCEEDED, 0, 0.1)])
def test_a_log_that_is_lost_keeps_nobody_waiting(
    end: dict[str, Any], status: int, patience: float, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "follow", partial(following.follow, patience_seconds=patience))
    with serving(FakeCluster(end)) as cluster:
        cluster.loses_logs = 1_000_000
        assert submitted(cluster) == status


def test_an_api_that_stays_away_leaves_the_job(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "follow", partial(following.follow, patience_seconds=0.1))
    with serving(FakeCluster({"status": "RUNNING"})) as cluster:
        cluster.away = True
        assert submitted(cluster, "retries=1") == 1
        said = capsys.readouterr().err
        assert f"submit: {cluster.address} answers 502" in said
        assert ": job job may go on, but nobody submits it again\n" in said
        assert f"python -m cluster.job logs id=job follow=true address={cluster.address}" in said


def test_an_id_is_taken_once(here: Path) -> None:
    with serving(FakeCluster(SUCCEEDED, SUCCEEDED)) as cluster:
        assert submitted(cluster) == 0
        with pytest.raises(RuntimeError, match="there already: give another id="):
            submitted(cluster)


def test_without_waiting_it_says_where_to_look(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(FakeCluster(KILLED)) as cluster:
        assert submitted(cluster, "wait=false") == 0
        said = capsys.readouterr().out
        assert f"python -m cluster.job logs id=job follow=true address={cluster.address}" in said
        assert f"python -m cluster.job stop id=job address={cluster.address}" in said
        assert "log of job" not in said


def test_secrets_go_to_the_cluster_and_nowhere_else(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with serving(FakeCluster(KILLED, SUCCEEDED)) as cluster:
        assert submitted(cluster, "env=[AWS_SECRET_ACCESS_KEY]", "retries=1") == 0
        assert cluster.jobs["job"]["runtime_env"]["env_vars"] == {"AWS_SECRET_ACCESS_KEY": SECRET}
        done = subprocess.run(
            [sys.executable, "-m", "cluster.job", "status", "id=job", f"address={cluster.address}"],
            capture_output=True,
            text=True,
            check=True,
        )
    said = "".join(capfd.readouterr()) + done.stdout + done.stderr
    assert "who has the cluster's token can read AWS_SECRET_ACCESS_KEY" in said
    assert "job-2  SUCCEEDED" in done.stdout
    assert SECRET not in said
    assert TOKEN not in said


def test_stop_ends_later_attempts_and_not_what_is_called_like_them(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = {"status": "STOPPED"}
    with serving(FakeCluster(RESUMABLE, KILLED, SUCCEEDED, SUCCEEDED)) as cluster:
        assert submitted(cluster, "retries=1") == 137
        assert submitted(cluster, "id=job-3") == 0  # somebody else's
        cluster.jobs["job-2"]["status"] = cluster.jobs["job-3"]["status"] = "RUNNING"
        cluster.on_stop = stopped
        assert job.main(["stop", "id=job", f"address={cluster.address}"]) == 0
        assert [one for one in cluster.asked if one.endswith("/stop")] == ["POST /api/jobs/job-2/stop"]
        capsys.readouterr()
        assert job.main(["stop", "id=job-3", f"address={cluster.address}"]) == 0
        assert "job-2" not in capsys.readouterr().out


@pytest.mark.parametrize(("end", "again"), [(RESUMABLE, True), (SUCCEEDED, False), ({"driver_exit_code": 1}, False)])
def test_a_stop_in_the_pause_between_attempts_says_who_has_to_be_stopped(
    end: dict[str, Any], again: bool, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(FakeCluster(end)) as cluster:
        submitted(cluster)
        capsys.readouterr()
        assert job.main(["stop", "id=job", f"address={cluster.address}"]) == 0
    said = capsys.readouterr().out
    assert "job job has ended: " in said
    assert ("where a cluster.submit with retries= waits, it submits it again" in said) == again


def test_ctrl_c_leaves_the_job(here: Path) -> None:
    with serving(FakeCluster({"status": "RUNNING"})) as cluster:
        command = [sys.executable, "-m", "cluster.submit", "pretrain", "storage=/mnt/runs", "id=job", "retries=1"]
        with subprocess.Popen(
            [*command, f"address={cluster.address}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
        ) as process:
            try:
                assert process.stdout
                while "log of job" not in process.stdout.readline():
                    assert process.poll() is None
                process.send_signal(signal.SIGINT)
                _, said = process.communicate(timeout=20)
            finally:
                process.kill()
        assert process.returncode == 130
        assert "job job goes on, but nobody submits it again" in said
        assert "Traceback" not in said
        assert not [one for one in cluster.asked if "stop" in one]
