from __future__ import annotations

from hypothesis import settings

# A slow machine is not a failure; nothing here asserts about time.
settings.register_profile("content", deadline=None)
settings.load_profile("content")
