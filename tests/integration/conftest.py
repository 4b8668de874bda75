"""Data for whole-command tests."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits, packed by the command: `train` and `val` with labels."""
    folder = tmp_path_factory.mktemp("digits")
    words = [sys.executable, "-m", "pipelines.pack", "source=digits", f"output={folder}"]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    return folder
