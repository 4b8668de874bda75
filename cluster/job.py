"""Jobs of a cluster: what they do, what they say, and their end.

  python -m cluster.job list address=http://127.0.0.1:8265
  python -m cluster.job status id=<id>              one line, and a line for each later attempt
  python -m cluster.job logs id=<id> follow=true    until it ends; then the exit status is the job's
  python -m cluster.job stop id=<id>                SIGTERM: pretrain and tune save the step under way first

Keys and defaults:

  id=                 as cluster.submit said it; stop also ends later attempts of it: <id>-2, <id>-3
  address=            of the jobs API; default: $RAY_API_SERVER_ADDRESS
  follow=false        logs: until the job ends
  wait=true           stop: until it has ended

The token is found where Ray looks for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.
"""

import sys
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from cluster.command_line import EXIT_FAILED, EXIT_OK, BadInput, Keys, nearest, parsed, run_command, say, truth
from cluster.following import follow, how_it_ended
from cluster.jobs_api import TERMINAL, JobsApi, NotFound, address_of, find_token

_KEYS: Keys = {"id": str, "address": str, "follow": truth, "wait": truth}
_STOP_SECONDS = 180.0  # the cluster's RAY_JOB_STOP_WAIT_TIME_S and some more


def main(words: list[str]) -> int:
    """Do what the first word says; the exit status."""
    verb, *rest = words or [""]
    if verb not in _VERBS:
        raise BadInput(f"unknown {verb or 'command'}: {nearest(verb, _VERBS)}")
    values = parsed(rest, _KEYS)
    if verb != "list" and not values.get("id"):
        raise BadInput(f"id= is missing: python -m cluster.job {verb} id=<id>; python -m cluster.job list shows them")
    api = JobsApi(address_of(values.get("address")), find_token())
    api.check()
    return _VERBS[verb](api, values)


def _list(api: JobsApi, values: dict[str, Any]) -> int:
    jobs = [one for one in api.jobs() if one.get("submission_id")]
    for one in sorted(jobs, key=lambda one: one.get("start_time") or 0):
        say(_line(one))
    if not jobs:
        say("no job was submitted to this cluster")
    return EXIT_OK


def _status(api: JobsApi, values: dict[str, Any]) -> int:
    for one in _attempts(api, values["id"]):
        say(_line(one))
    return EXIT_OK


def _logs(api: JobsApi, values: dict[str, Any]) -> int:
    job = values["id"]
    _attempts(api, job)
    if values.get("follow", False):
        ended = follow(api, job, show)
        say(f"job {job}: {ended.why}")
        return ended.status
    show(api.logs(job))
    return EXIT_OK


def _stop(api: JobsApi, values: dict[str, Any]) -> int:
    attempts = _attempts(api, values["id"])
    running = [one["submission_id"] for one in attempts if one["status"] not in TERMINAL]
    if not running:
        ended = how_it_ended(attempts[-1])
        again = "; where a cluster.submit with retries= waits, it submits it again: end that one by Ctrl-C"
        say(f"job {attempts[-1]['submission_id']} has ended: {ended.why}{again if ended.resumable else ''}")
        return EXIT_OK
    for job in running:
        api.stop(job)
        say(f"job {job} was asked to stop")
    if values.get("wait", True):
        end = time.monotonic() + _STOP_SECONDS
        for job in running:
            while (details := api.details(job))["status"] not in TERMINAL:
                if time.monotonic() > end:
                    say(f"job {job} has not ended in {_STOP_SECONDS:.0f} s: ask again")
                    return EXIT_FAILED
                time.sleep(0.5)
            say(f"job {job}: {how_it_ended(details).why}")
    return EXIT_OK


_VERBS: dict[str, Callable[[JobsApi, dict[str, Any]], int]] = {
    "list": _list,
    "status": _status,
    "logs": _logs,
    "stop": _stop,
}


def _attempts(api: JobsApi, job: str) -> list[dict[str, Any]]:
    """The job, and what the same cluster.submit submitted after it, in order; raises BadInput where there is none."""
    try:
        first = api.details(job)
    except NotFound:
        known = [one["submission_id"] for one in api.jobs() if one.get("submission_id")]
        near = get_close_matches(job, known, n=1, cutoff=0.5)
        raise BadInput(
            f"there is no job {job} on {api.address}: "
            f"{f'did you mean {near[0]}?' if near else 'python -m cluster.job list shows them'}"
        ) from None
    nonce, number = _submission(first)
    later = {_submission(one)[1]: one for one in api.jobs() if _submission(one)[0] == nonce}
    return [first, *(later[other] for other in sorted(later) if other > number)]


def _submission(details: dict[str, Any]) -> tuple[str, int]:
    """Which cluster.submit it came from, and which attempt of it; its own id and 1 where it came otherwise."""
    nonce, _, number = (details.get("metadata") or {}).get("submission", "").rpartition("-")
    return (nonce, int(number)) if nonce and number.isdecimal() else (details.get("submission_id") or "", 1)


def _line(one: dict[str, Any]) -> str:
    """Id, status, age and command; never the environment, which has values in it."""
    status, start = one["status"], one.get("start_time") or 0
    seconds = ((one.get("end_time") or time.time() * 1000) - start) / 1000
    ended = f", {how_it_ended(one).why}" if status in TERMINAL and status != "SUCCEEDED" else ""
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start / 1000))
    return f"{one['submission_id']}  {status}{ended}  {begun}, {seconds:.0f} s  {one['entrypoint']}"


def show(text: str) -> None:
    """A piece of a log, on standard output, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def commands_of(job: str, address: str) -> Sequence[str]:
    """What a person types to see a job, read it and stop it."""
    verbs = {"status": "", "logs": " follow=true", "stop": ""}
    return [f"python -m cluster.job {verb} id={job}{more} address={address}" for verb, more in verbs.items()]


if __name__ == "__main__":
    run_command("job", __doc__, main)
