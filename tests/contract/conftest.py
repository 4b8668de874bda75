"""The session's worker processes."""

from collections.abc import Generator

import pytest
from gloo_pool import GlooPool


@pytest.fixture(scope="session")
def pool() -> Generator[GlooPool]:
    """One to three processes that form gloo groups; started by the first test that needs them."""
    workers = GlooPool()
    yield workers
    workers.close()
