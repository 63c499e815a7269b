from __future__ import annotations

from hypothesis import HealthCheck, settings

# A slow machine is not a failure; nothing here asserts about time.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
