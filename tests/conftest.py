from __future__ import annotations

from typing import List

import pytest
from hypothesis import HealthCheck, settings

# A slow machine is not a failure; nothing here asserts about time.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

LONGEST = ("test_integration", "test_storage")


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Put the longest first: of several processes none waits long for the last."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))
