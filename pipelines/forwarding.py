"""From a run's metric files to the tracker: a thread that reads what workers append and sends it on in batches.

The files are the record, the tracker is a copy of it. So nothing is lost while the tracker is away: the thread keeps
its place in the files, tries again with growing pauses, and goes on where it stopped. Nothing is doubled either: before
the first batch it asks the tracker for the last step that is there, and leaves out every line up to it.

This module knows neither Ray nor MLflow; `pipelines.tracking` is the destination.
"""

import json
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

PART_PATTERN = "attempt-*.jsonl"
BATCH_VALUES = 1000  # what MLflow takes in one call
_CHUNK_BYTES = 1 << 20
_LONGEST_PAUSE_SECONDS = 30.0


class Refused(RuntimeError):
    """The destination will never take this: trying again is useless."""


@dataclass(frozen=True, kw_only=True)
class MetricLine:
    """One line of the record: what was measured after `step` steps."""

    step: int
    time_ms: int  # since 1970, when the worker wrote it: the same in every replay
    values: Mapping[str, float]


class Destination(Protocol):
    """Where lines go. Calls raise `Refused` where it is useless to try again, anything else where it is not."""

    def last_step(self) -> int:
        """The last step that is there, −1 for none."""
        ...

    def send(self, lines: Sequence[MetricLine]) -> None:
        """Take these lines, all or none of them."""
        ...


class MetricsTail:
    """Reads the parts of a record (`<folder>/attempt-0001.jsonl`, …) in order, each line once, as they grow.

    A later attempt did the steps after its checkpoint again: lines of an earlier part from the later part's first line
    on are left out. A line without its end of line is one that is being written, or that a kill cut short.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._part: Path | None = None
        self._offset = 0
        self._ready: deque[MetricLine] = deque()
        self._first_steps: dict[Path, int] = {}

    def read(self, max_values: int = BATCH_VALUES) -> list[MetricLine]:
        """The next lines, with at most `max_values` values, counting one more a line; none if there is nothing new."""
        if not self._ready:
            self._refill()
        lines: list[MetricLine] = []
        room = max_values
        while self._ready and ((room := room - len(self._ready[0].values) - 1) >= 0 or not lines):
            lines.append(self._ready.popleft())
        return lines

    def _refill(self) -> None:
        parts = sorted(self._folder.glob(PART_PATTERN))
        while not self._ready and parts:
            if self._part not in parts:
                self._part, self._offset = parts[0], 0
            later = parts[parts.index(self._part) + 1 :]
            chunk = self._whole_lines(self._part)
            if chunk:
                redone = min((step for part in later if (step := self._first_step(part)) is not None), default=None)
                found = (parse_line(text) for text in chunk.splitlines())
                self._ready.extend(line for line in found if line and (redone is None or line.step < redone))
            elif later:
                self._part, self._offset = later[0], 0
            else:
                return

    def _whole_lines(self, part: Path) -> bytes:
        with part.open("rb") as file:
            file.seek(self._offset)
            chunk = file.read(_CHUNK_BYTES)
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole

    def _first_step(self, part: Path) -> int | None:
        """The step of a part's first line, None where it has none yet."""
        if part not in self._first_steps:
            with part.open("rb") as file:
                for text in file:
                    line = parse_line(text) if text.endswith(b"\n") else None
                    if line is not None:
                        self._first_steps[part] = line.step
                        break
        return self._first_steps.get(part)


def parse_line(text: bytes) -> MetricLine | None:
    """One line of the record; None for the head of a part and for what is not a line at all."""
    try:
        line = cast(dict[str, Any], json.loads(text))
        step, time_ms = int(line["step"]), round(float(line["time"]) * 1000)
    except (ValueError, TypeError, KeyError):
        return None
    values = {
        key: float(value)
        for key, value in line.items()
        if key not in ("step", "time") and isinstance(value, int | float) and not isinstance(value, bool)
    }
    return MetricLine(step=step, time_ms=time_ms, values=values)


class Forwarder:
    """Sends a record and single calls to a destination from a thread of its own, which never holds up the run.

    Args:
        tail: the record.
        destination: where its lines go.
        say: called with one line when the destination goes away, when it is back, and when it refuses something.
        poll_seconds: how often the files are looked at.
    """

    def __init__(
        self, tail: MetricsTail, destination: Destination, *, say: Callable[[str], None], poll_seconds: float = 1.0
    ) -> None:
        self._tail, self._destination, self._say, self._poll = tail, destination, say, poll_seconds
        self._calls: deque[Callable[[], None]] = deque()
        self._last_call: Callable[[], None] | None = None
        self._waiting: list[threading.Event] = []
        self._pending: list[MetricLine] = []
        self._last_step: int | None = None
        self._failures = 0
        self._metrics_refused = self._done = False
        self._wake, self._closing, self._abandoned = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics-forwarder", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, call: Callable[[], None]) -> None:
        """Have `call` made, in the order of submission, again and again until it succeeds or is refused."""
        self._calls.append(call)
        self._wake.set()

    def flush(self, *, wait_seconds: float) -> bool:
        """Wait until all that was written and submitted so far has been sent; whether it was, within `wait_seconds`."""
        flushed = threading.Event()
        self.submit(lambda: self._waiting.append(flushed))
        return flushed.wait(wait_seconds)

    def finish(self, last_call: Callable[[], None], *, wait_seconds: float) -> bool:
        """Send what is left, make `last_call`, and end the thread.

        Returns:
            Whether all of it arrived within `wait_seconds`; otherwise the thread gives up, and the files have the rest.
        """
        self._last_call = last_call
        self._closing.set()
        self._wake.set()
        self._thread.join(wait_seconds)
        self._abandoned.set()
        return not self._thread.is_alive() and not self._metrics_refused

    def _run(self) -> None:
        while not self._done and not self._abandoned.is_set():
            pause = self._poll
            try:
                busy = self._turn()
            except Exception as error:  # noqa: BLE001 (whatever a tracker's client raises while its server is away)
                pause, busy = self._pause_after(error), False
            else:
                if self._failures:
                    self._say("the tracking server is back: sending what it missed")
                    self._failures = 0
                if not busy:
                    self._release()
            if not busy and not self._done:
                self._wake.wait(pause)
                self._wake.clear()

    def _release(self) -> None:
        for flushed in self._waiting:
            flushed.set()
        self._waiting.clear()

    def _turn(self) -> bool:
        """Do one thing; whether there was anything to do."""
        closing = self._closing.is_set()  # before looking: what was submitted or written before it is seen below
        if self._calls:
            self._once(self._calls[0])
            self._calls.popleft()
            return True
        if not self._metrics_refused:
            try:
                if self._send_lines():
                    return True
            except Refused as error:
                self._metrics_refused = True
                self._say(f"metrics are no longer copied to the tracker, the files have them: {error}")
        if closing and self._last_call is not None:
            self._once(self._last_call)
            self._done = True
        return False

    def _once(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Refused as error:
            self._say(f"the tracker refused: {error}")

    def _send_lines(self) -> bool:
        read = self._pending or self._tail.read()
        self._pending = read
        if not read:
            return False
        if self._last_step is None:
            self._last_step = self._destination.last_step()
        new = [line for line in read if line.step > self._last_step]
        if new:
            self._destination.send(new)
            self._last_step = max(line.step for line in new)
        self._pending = []
        return True

    def _pause_after(self, error: Exception) -> float:
        """Say so once per outage; seconds until the next try, short while the run is waiting for its end."""
        if not self._failures and not self._abandoned.is_set():
            reason = " ".join(str(error).split())[:160]
            self._say(f"the tracking server does not answer ({reason}): the run goes on, its files keep the metrics")
        self._failures += 1
        self._last_step = None  # a batch whose answer was lost may be there: ask again
        return 0.5 if self._closing.is_set() else min(_LONGEST_PAUSE_SECONDS, 2.0 ** min(self._failures - 1, 5))
