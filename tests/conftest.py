"""Shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Converted models go to a folder of the tests, not to the user's."""
    os.environ["HETERO_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["HETERO_CACHE"]
