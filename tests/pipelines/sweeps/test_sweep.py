"""What is checked of a sweep before anything of it is written down."""

from pathlib import Path

import pytest

from pipelines.config import compose
from pipelines.sweeps.sweep import plan_sweep
from ssl_core.errors import UserError


@pytest.mark.parametrize("where", ["tracking.uri", "MLFLOW_TRACKING_URI"])
def test_a_password_that_trials_would_write_down_is_refused(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "http://me:hunter2@127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    words = [f"storage={tmp_path}", "data.train=nowhere", *([f"{where}={uri}"] if "." in where else [])]
    with pytest.raises(UserError, match=r"tracking\.uri=http://127.* has a password.*MLFLOW_TRACKING_PASSWORD") as said:
        plan_sweep(compose("tune", words), name="sweep", words=words)
    assert "hunter2" not in str(said.value)
    assert list(tmp_path.iterdir()) == []
