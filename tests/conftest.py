from __future__ import annotations

from typing import Iterator, List

import pytest
from hypothesis import HealthCheck, settings

from tests.canaries import CANARIES, watch_logs

# A slow machine is not a failure; nothing here asserts about time.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

LONGEST = ("test_integration", "test_storage")


@pytest.fixture(autouse=True)
def no_secret_is_seen(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that lets a secret be seen; see ``canaries.py``."""
    watch_logs()
    yield
    leaks = CANARIES.check()
    if leaks and request.node.get_closest_marker("plants_secrets") is None:
        pytest.fail("; ".join(leaks) + ".")


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Put the longest first: of several processes none waits long for the last."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))
