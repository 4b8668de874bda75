"""What tests of several packages of `ssl_core` share."""

import random
from collections.abc import Generator

import numpy as np
import pytest
import torch


def generator_states() -> tuple[object, ...]:
    in_numpy = np.random.get_state(legacy=False)["state"]  # noqa: NPY002 (global state is what must not change)
    return random.getstate(), in_numpy["key"].tolist(), in_numpy["pos"], torch.get_rng_state().tolist()


@pytest.fixture
def untouched_generators() -> Generator[None]:
    """Fails a test that draws from a global generator or seeds it."""
    before = generator_states()
    yield
    assert generator_states() == before
