"""Pages of lists: links from one to the next (RFC 8288)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

if TYPE_CHECKING:
    from starlette.requests import Request

    from vision_o3.registry.values import Page


def link_header(request: Request, page: Page[Any]) -> str:
    """Return the ``Link`` header of a page: first, prev, next, last."""
    last = max(1, -(-page.total // page.page_size))
    targets = {"first": 1, "last": last}
    if page.page > 1:
        targets["prev"] = min(page.page - 1, last)
    if page.page < last:
        targets["next"] = page.page + 1
    kept = [
        (name, value)
        for name, value in request.query_params.multi_items()
        if name not in {"page", "page_size"}
    ]
    links = []
    for relation, number in targets.items():
        query = urlencode([*kept, ("page", number), ("page_size", page.page_size)])
        links.append(f'<{request.url.path}?{query}>; rel="{relation}"')
    return ", ".join(links)
