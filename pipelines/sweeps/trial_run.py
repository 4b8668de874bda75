"""One trial: the pretraining that it is, in a thread, and its k-NN curve as it grows."""

import math
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.forwarding import MetricsTail
from pipelines.plan import Plan, make_plan, probe_data
from pipelines.pretraining import carry_out, prepare
from pipelines.run_folder import RunFolder
from pipelines.stop_signals import StopSignals
from pipelines.sweeps.trials import CURVE, read_trial
from ssl_core.errors import NonFiniteLoss, Resumable, Unavailable, UserError
from ssl_core.probe.report import PRETRAINED

_LOOK_SECONDS = 0.5
_STOP_SECONDS = 25.0


class TrialRun:
    """Runs what a trial's record says, and says what became of it.

    Args:
        folder: the trial's.
        parent: the sweep's run in MLflow.
        metric: what the sweep compares: `knn_online`, or a name of the probe's table.
    """

    def __init__(self, folder: Path, *, parent: str | None, metric: str) -> None:
        self._folder, self._parent, self._metric = folder, parent, metric
        values = read_trial(folder).config
        self._plan: Plan = make_plan(values)
        self._run = RunFolder.open(str(values["storage"]), folder.name, identity=self._plan.identity, config=values)
        self._stop = StopSignals()
        self._end: dict[str, Any] = {}
        self._tail = MetricsTail(folder / "metrics")
        self._last: dict[str, Any] = {}
        self._thread = threading.Thread(target=self._carry_out, name="trial", daemon=True)
        self._thread.start()

    def next(self) -> Mapping[str, Any]:
        """Wait for the curve's next point, or for the end.

        Returns:
            `epoch`, `step` and `knn_online`; at the end also `outcome` ("finished", "failed", or "interrupted", which
            another try may continue), `reason`, `score`, `error`, `images_per_second`.
        """
        while True:
            running = self._thread.is_alive()
            for line in self._tail.read(1):
                if CURVE in line.values:
                    self._last = {
                        "epoch": line.step / self._plan.schedule.steps_per_epoch,
                        "step": line.step,
                        CURVE: line.values[CURVE],
                    }
                    if line.step < self._plan.total_steps:  # the last point comes with the end
                        return self._last
                break
            else:
                if not running:
                    return {**self._last, **self._end, **self._judged()}
                time.sleep(_LOOK_SECONDS)

    def stop(self) -> None:
        """Stop after a step, with a checkpoint; within half a minute."""
        self._stop.ask()
        self._thread.join(_STOP_SECONDS)

    def _carry_out(self) -> None:
        try:
            if not self._run.finished:
                with self._run.locked():
                    uri = prepare(self._run, self._plan, self._plan.config.tracking.uri)
                    carry_out(self._run, self._plan, self._stop, uri, parent=self._parent)
            self._end = {"outcome": "finished"}
        except NonFiniteLoss as error:
            self._end = {"outcome": "failed", "reason": str(error)}
        except (Resumable, Unavailable, OSError) as error:  # another try may find what was missing
            self._end = {"outcome": "interrupted", "reason": str(error)}
        except Exception as error:  # noqa: BLE001 (a trial that fails is one of the sweep's results)
            said = str(error).strip() or type(error).__name__
            sys.stdout.write(f"{getattr(error, 'said', said)}\n")
            self._end = {"outcome": "failed", "reason": f"{_kind(error)}{said.splitlines()[-1]}"}

    def _judged(self) -> dict[str, Any]:
        if self._end.get("outcome") != "finished":
            return {}
        summary = self._run.summary()
        speed = {"images_per_second": summary["images_per_second"]}
        if self._metric != CURVE:
            measure = summary["probe"]["rows"][PRETRAINED][self._metric]
            return {**speed, "score": measure["value"], "error": measure["error"]}
        share = self._last[CURVE]
        return {**speed, "score": share, "error": math.sqrt(share * (1 - share) / self._queries())}

    def _queries(self) -> float:
        """Images that the curve is judged by."""
        data, probe = probe_data(self._plan), self._plan.config.probe
        assert data is not None, "checked by the driver"
        return min(probe.online_val, (probe.held_out or 1.0) * data[1].labelled_samples)


def _kind(error: BaseException) -> str:
    return "" if isinstance(error, UserError) else f"{type(error).__name__}: "
