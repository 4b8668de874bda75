"""Worker processes that these tests share."""

from collections.abc import Generator

import pytest
from gloo_pool import GlooPool


@pytest.fixture(scope="package")
def pool() -> Generator[GlooPool]:
    """One to four processes that form gloo groups; started by the first test that needs them.

    They end with these tests: of a group that was left, gloo may keep a thread that uses up a core until then.
    """
    workers = GlooPool()
    yield workers
    workers.close()
