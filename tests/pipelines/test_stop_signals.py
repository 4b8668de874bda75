"""The first signal stops a command so that it can be continued, a second one at once."""

import os
import signal
import time

import pytest

from pipelines.stop_signals import stop_signals
from ssl_core.errors import Resumable


def signalled(*numbers: signal.Signals) -> None:
    """In the middle of something long."""
    for number in numbers:
        os.kill(os.getpid(), number)
    time.sleep(5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_interrupts_and_can_be_continued(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Resumable, match="the same command continues it"), stop_signals():
        signalled(number)
    assert signal.getsignal(number) is before


def test_the_first_one_is_only_noted_where_somebody_looks() -> None:
    with stop_signals() as stop:
        began = time.monotonic()
        assert not stop.wait(0.01)
        with stop.noted():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.asked
            assert not stop.asked_twice
            assert stop.wait(60)
        assert time.monotonic() - began < 5
        assert (stop.seconds_since or 9) < 5
        with pytest.raises(Resumable):
            stop.raise_if_asked()


def test_a_second_one_leaves_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stop_signals() as stop, stop.noted():
        signalled(signal.SIGINT, signal.SIGINT)
