"""Images for the tests of the views."""

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_sample_images


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray[Any, Any]]:
    """The two photos that come with scikit-learn: uint8 [427, 640, 3]."""
    return [np.array(image) for image in load_sample_images().images]


@pytest.fixture
def noise() -> np.ndarray[Any, Any]:
    """Every colour at once, where rounding and clamping show most: uint8 [40, 48, 3]."""
    return np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
