"""Run a command on a Ray cluster, as a job that goes on without this terminal.

  python -m cluster.submit pretrain method=mae data.train=s3://images/train storage=/mnt/runs train.workers=8 address=…
  python -m cluster.submit pretrain … name=first retries=5 env=[MLFLOW_TRACKING_URI,AWS_ENDPOINT_URL]
  python -m cluster.submit probe run=first storage=/mnt/runs wait=false

The first word is pretrain, tune, probe or preflight. The words after it go to `python -m pipelines.<command>` as they
are, but for these keys, here with their defaults:

  address=            http://<head>:8265, the jobs API; without it $RAY_API_SERVER_ADDRESS
  folder=.            its files become the job's working directory on every node; null: the image has all it needs
  exclude=[]          more of them to leave out, as in .gitignore. Never sent: what .gitignore and .rayignore leave out,
                      .git, environments and caches, links to folders, files with keys (.env, *.pem, …)
  env=[]              names of variables that the job gets with the values they have here. Who has the cluster's token
                      can read those: keys belong into a Secret of the cluster (docs/cluster.md)
  wait=true           show the log until the job ends; the exit status is then the job's (stopped: 75)
  retries=0           so often again, as <id>-2, <id>-3, where the driver stopped with status 75, was killed, or went
                      with its node
  id=                 of the job; without it, command and time. A cluster takes each id once

pretrain and tune get name=<id> where no name is given, so that an attempt continues the one before, and
ray.address=auto. Ctrl-C leaves the job running. The cluster's token is found where Ray looks for it: RAY_AUTH_TOKEN,
RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.
"""

import shlex
import sys
import time

from cluster.command_line import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, run_command, say
from cluster.following import PATIENCE_SECONDS, follow
from cluster.job import commands_of, show
from cluster.jobs_api import JobsApi, Unreachable, address_of, find_token
from cluster.package import Package, pack
from cluster.submission import Submission, submission_of

_READY_SECONDS = 60.0  # a head that answers may not be ready for jobs; one that is replaced takes longer
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 300.0  # before a job is submitted again


def main(words: list[str]) -> int:
    """Submit what the words say, and follow it to its end; the exit status."""
    job = submission_of(words)
    api = JobsApi(address_of(job.address), find_token())
    api.check()
    package = pack(job.folder, job.exclude) if job.folder else None
    if package and job.folder:
        say(f"{package.files} files of {job.folder.resolve()}, {package.size / 1e6:.1f} MB")
    if job.secret_names:
        say(f"who has the cluster's token can read {', '.join(job.secret_names)}: see docs/cluster.md on Secrets")
    number = 1
    while True:
        _submit(api, job, package, number)
        if not job.wait:
            return EXIT_OK
        try:
            ended = follow(api, job.attempt(number), show)
        except (KeyboardInterrupt, Unreachable) as error:
            _leave(api, job, number, error)
            return EXIT_FAILED if isinstance(error, Unreachable) else EXIT_INTERRUPTED
        say(f"job {job.attempt(number)}: {ended.why}")
        if not ended.resumable or number > job.retries:
            return ended.status
        pause = min(_FIRST_PAUSE_SECONDS * 2 ** (number - 1), _LONGEST_PAUSE_SECONDS)
        number += 1
        say(f"submitting it again in {pause:.0f} s, as {job.attempt(number)}")
        time.sleep(pause)


def _submit(api: JobsApi, job: Submission, package: Package | None, number: int) -> None:
    """Submit one attempt; a head that is not ready is waited for."""
    end = time.monotonic() + (PATIENCE_SECONDS if number > 1 else _READY_SECONDS)
    while True:
        try:
            _submit_now(api, job, package, number)
            break
        except Unreachable:
            if time.monotonic() > end:
                raise
            time.sleep(1)
    if number == 1:
        say(f"job {job.id}: {shlex.join(['python', '-m', f'pipelines.{job.command}', *job.overrides])}")
        say("\n".join(f"  {command}" for command in commands_of(job.id, api.address)))


def _submit_now(api: JobsApi, job: Submission, package: Package | None, number: int) -> None:
    runtime_env: dict[str, object] = {"env_vars": dict(job.environment)}
    if package:
        if not api.has_package(package.name):
            package.content.seek(0)
            api.send_package(package.name, package.content, package.size)
        runtime_env["working_dir"] = package.uri
    metadata = {"submission": f"{job.nonce}-{number}", "command": job.command}
    api.submit(job.attempt(number), job.entrypoint, runtime_env, metadata)


def _leave(api: JobsApi, job: Submission, number: int, error: BaseException) -> None:
    name = job.attempt(number)
    goes_on = f"{error}: job {name} may go on" if isinstance(error, Unreachable) else f"job {name} goes on"
    again = ", but nobody submits it again" if job.retries else ""
    _status, logs, stop = commands_of(name, api.address)
    sys.stderr.write(f"\nsubmit: {goes_on}{again}\n  {logs}\n  {stop}\n")


if __name__ == "__main__":
    run_command("submit", __doc__, main)
