"""Shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Ray reads these when it is imported; one process of tests joins clusters of others, which need a common token.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = "0123456789abcdef" * 4
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"

# Whatever is installed beside: texts and figures of tests are the toy pair's.
os.environ["HETERO_BUILTIN"] = "toy"

# As in workers (``runtime.pinning``): forwards' threads that spin long starve each other on a busy machine.
os.environ["GOMP_SPINCOUNT"] = "1000"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Converted models go to a folder of the tests, not to the user's."""
    os.environ["HETERO_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["HETERO_CACHE"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """``-m quick``: what needs neither Ray nor a real model's time, by folder."""
    for item in items:
        thorough = item.get_closest_marker("long") or item.get_closest_marker("thorough")
        if item.path.parent.name in ("unit", "simulation") and not thorough:
            item.add_marker(pytest.mark.quick)
