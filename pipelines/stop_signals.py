"""SIGINT and SIGTERM during a command: the first one stops it so that it can be continued, the second one at once."""

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from ssl_core.errors import Resumable

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SLICE_SECONDS = 0.1
_STOPPED = "stopped as asked: the same command continues it"


class StopSignals:
    """What has been asked of this process so far."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._only_noted = False

    def take_over(self) -> None:
        """Handle the signals from now on; again after `ray.init`, which puts a handler of its own in the way."""
        if threading.current_thread() is threading.main_thread():  # no other may
            for number in _SIGNALS:
                signal.signal(number, self.handle)

    def ask(self) -> None:
        """Ask this process to stop, as a first signal would whoever looks; interrupts nothing."""
        self._times.append(time.monotonic())

    @property
    def asked(self) -> bool:
        """Whether somebody asked to stop."""
        return bool(self._times)

    @property
    def asked_twice(self) -> bool:
        """Whether somebody cannot wait."""
        return len(self._times) > 1

    @property
    def seconds_since(self) -> float | None:
        """Since the first signal."""
        return time.monotonic() - self._times[0] if self._times else None

    @contextmanager
    def noted(self) -> Generator[None]:
        """Within: the first signal is noted for whoever looks; outside it interrupts what is being done."""
        if self.asked:
            raise KeyboardInterrupt
        self._only_noted = True
        try:
            yield
        finally:
            self._only_noted = False

    def raise_if_asked(self) -> None:
        """Stop here; raises Resumable."""
        if self.asked:
            raise Resumable(_STOPPED)

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until asked to stop; whether that was asked."""
        end = time.monotonic() + seconds
        while not self.asked and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE_SECONDS))
        return self.asked

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler: nothing but notes, since it runs in the middle of anything."""
        self._times.append(time.monotonic())
        if self.asked_twice or not self._only_noted:
            raise KeyboardInterrupt


@contextmanager
def stop_signals() -> Generator[StopSignals]:
    """Within: SIGINT and SIGTERM are handled as this module says.

    Raises:
        Resumable: the first signal interrupted what is within.
        KeyboardInterrupt: a second one did.
    """
    signals = StopSignals()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    signals.take_over()
    try:
        yield signals
    except KeyboardInterrupt as error:
        if signals.asked_twice or not signals.asked:
            raise
        raise Resumable(_STOPPED) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, old in before.items():
                signal.signal(number, old)
