"""The gateway's watcher: what the registry tells becomes numbers and spans."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from vision_o3.gateway.metrics import Metrics
    from vision_o3.gateway.tracing import Tracing
    from vision_o3.registry.watching import Event, Step, Watcher


class TracedWatcher:
    """Counts by ``Metrics``, and makes each step of publishing a span."""

    def __init__(self, metrics: Metrics, tracing: Tracing) -> None:
        self._metrics = metrics
        self._tracing = tracing

    def tell(self, event: Event, amount: int = 1) -> None:
        """Take note of what the registry tells; see ``Watcher``."""
        self._metrics.tell(event, amount)

    def step(
        self, step: Step, *, cid: str | None = None, size: int | None = None
    ) -> AbstractContextManager[None]:
        """Time a step and trace it; see ``Watcher``."""
        return self._step(step, cid, size)

    @contextmanager
    def _step(self, step: Step, cid: str | None, size: int | None) -> Iterator[None]:
        with (
            self._tracing.span(f"publish.{step}", cid=cid, size=size),
            self._metrics.step(step),
        ):
            yield


def watcher_of(metrics: Metrics, tracing: Tracing | None) -> Watcher:
    """Return what the registry tells of its work."""
    return metrics if tracing is None else TracedWatcher(metrics, tracing)
