"""The live line of a run, from the last line of rank 0's metrics; the workers' events in lines of their own."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from pipelines.console import LiveLine, duration, say
from ssl_core.train.records import part_path, read_part


class Progress:
    """Shows one attempt."""

    def __init__(self, folder: Path, attempt: int, total_steps: int, steps_per_epoch: int) -> None:
        self._metrics, self._events = part_path(folder, "metrics", attempt), part_path(folder, "events", attempt)
        self._total, self._per_epoch = total_steps, steps_per_epoch
        self._live = LiveLine()
        self._first: tuple[int, float] | None = None
        self._events_said = 0
        self.step = 0

    def show(self) -> None:
        """Say what is new."""
        events: list[dict[str, Any]] = []
        with suppress(OSError):  # the folder does not answer just now
            events = read_part(self._events)[1] if self._events.exists() else []
        for event in events[self._events_said :]:
            say(str(event["event"]))
        self._events_said = len(events)
        line = self._last()
        if line is None or int(line["step"]) == self.step:
            return
        self.step = int(line["step"])
        self._first = self._first or (self.step, float(line["time"]))
        first_step, first_time = self._first
        pace = (float(line["time"]) - first_time) / (self.step - first_step) if self.step > first_step else 0.0
        left = f" · {duration(pace * (self._total - self.step))} left" if pace else ""
        self._live.show(
            f"step {self.step}/{self._total} · epoch {self.step / self._per_epoch:.2f} · loss {line['loss']:.4f} · "
            f"{line['images_per_second']:,.0f} images/s{left}",
            force=self.step == self._total,
        )

    def close(self) -> None:
        """End the live line."""
        self._live.close()

    def _last(self) -> dict[str, Any] | None:
        """The last whole line of the metrics."""
        try:
            with self._metrics.open("rb") as file:
                file.seek(0, 2)
                file.seek(max(0, file.tell() - 4096))
                lines = file.read().split(b"\n")[:-1]
            line = cast(dict[str, Any], json.loads(lines[-1])) if lines else {}
        except (OSError, json.JSONDecodeError):
            return None
        return line if "step" in line else None
