"""What an attempt ended with, from what Ray and the workers say: lost workers are tried again, nothing else is."""

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError

from pipelines.failures import WorkerFailed, last_words, meaning
from pipelines.heartbeat import LastWords
from ssl_core.errors import NonFiniteLoss, Resumable, UserError, WorkerLost

WHERE = {1: " (node ab, pid 7)"}


def words_of(error: Exception, rank: int) -> LastWords:
    """As a worker says them: from within, with its traceback."""
    try:
        raise error
    except Exception as raised:  # noqa: BLE001 (whichever error the test is about)
        return last_words(raised, attempt=1, rank=rank)


def raised_by(*errors: Exception) -> WorkerGroupError:
    return WorkerGroupError("said", {rank: RuntimeError(str(error)) for rank, error in enumerate(errors)})


def group_error(failures: dict[int, Exception]) -> WorkerGroupError:
    return WorkerGroupError("said", failures)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (WorkerLost("gone"), "lost"),
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer"), "lost"),
        (Resumable("full"), "resumable"),
        (NonFiniteLoss("not finite"), "diverged"),
        (UserError("wrong"), "user"),
        (RuntimeError("shapes do not fit"), "code"),
        (KeyError("x"), "code"),
    ],
)
def test_a_worker_says_why_it_ends(error: Exception, kind: str) -> None:
    words = words_of(error, 2)
    assert (words.kind, words.rank) == (kind, 2)
    assert ("Traceback" in words.said) == (kind == "code")


def test_a_lost_connection_is_tried_again() -> None:
    lost = [WorkerLost("the connection to another worker is lost (x)")] * 2
    found = meaning(raised_by(*lost), [words_of(error, rank) for rank, error in enumerate(lost)], WHERE)
    assert isinstance(found, WorkerLost)
    assert str(found) == "worker 0: the connection to another worker is lost (x)"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KeyError("x"), WorkerFailed),
        (UserError("wrong"), UserError),
        (NonFiniteLoss("nan"), NonFiniteLoss),
        (Resumable("full"), Resumable),
    ],
)
def test_who_raised_by_itself_counts_more_than_who_lost_it(error: Exception, kind: type[Exception]) -> None:
    errors = [WorkerLost("lost"), error, WorkerLost("lost")]
    found = meaning(raised_by(*errors), [words_of(one, rank) for rank, one in enumerate(errors)], WHERE)
    assert type(found) is kind
    assert "lost" not in str(found)


def test_a_failure_shows_the_workers_own_traceback() -> None:
    found = meaning(raised_by(KeyError("x")), [words_of(KeyError("x"), 0)], WHERE)
    assert isinstance(found, WorkerFailed)
    assert "in words_of" in found.said
    assert str(found) == "KeyError: 'x'"
    assert found.said.strip().endswith(str(found))


def test_a_worker_that_went_away_explains_what_the_others_say() -> None:
    gone = WorkerHealthCheckFailedError("poll failed", failure=ActorDiedError())
    words = [words_of(ValueError("half a message"), 0)]
    found = meaning(group_error({0: ValueError("half a message"), 1: gone}), words, WHERE)
    assert isinstance(found, WorkerLost)
    assert str(found).startswith("worker 1 (node ab, pid 7) went away (")


def test_workers_that_cannot_be_started_are_tried_again_but_not_what_their_code_says() -> None:
    found = meaning(ControllerError(WorkerGroupStartupTimeoutError(3)), [], {})
    assert isinstance(found, WorkerLost)
    assert str(found).startswith("the workers could not be started (")
    unread = RuntimeError("The actor died because of an error raised in its creation task …\nNo module named 'x'")
    assert str(meaning(unread, [], {})) == "No module named 'x'"
    for cause, kind in ((ImportError("no module x"), WorkerFailed), (ConnectionError("refused"), WorkerLost)):
        task = RayTaskError("start", "Traceback …", cause)
        assert type(meaning(ControllerError(task), [], {})) is kind
