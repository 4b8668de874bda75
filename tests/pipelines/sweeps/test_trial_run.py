"""What becomes of a trial whose run ends with an error: failed is for good, interrupted is tried again."""

from pathlib import Path

import pytest

from pipelines.config import compose
from pipelines.sweeps import trial_run
from pipelines.sweeps.sweep import plan_sweep
from pipelines.sweeps.trial_run import TrialRun
from ssl_core.errors import NonFiniteLoss, Unavailable, UserError, WorkerLost

WORDS = ["model=resnet_micro", "model.image_size=16", "model.in_chans=1", "train.global_batch=128", "train.steps=12"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Unavailable("the tracking server does not answer"), "interrupted"),
        (OSError(28, "No space left on device"), "interrupted"),
        (WorkerLost("a worker is gone"), "interrupted"),
        (NonFiniteLoss("the loss is not finite"), "failed"),
        (UserError("that does not fit"), "failed"),
        (KeyError("typo"), "failed"),
    ],
)
def test_what_another_try_may_not_meet_again_is_no_failure(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: str
) -> None:
    def prepare(*_: object) -> str:
        raise error

    monkeypatch.setattr(trial_run, "prepare", prepare)
    words = [*WORDS, f"data.train={digits}/train", f"storage={tmp_path}"]
    record = plan_sweep(compose("tune", words), name="sweep", words=words).trials().next()
    assert record is not None
    ended = TrialRun(tmp_path / "sweep" / record.name, parent=None, metric="knn_online").next()
    assert ended["outcome"] == outcome
    assert str(error.args[-1]) in ended["reason"]
