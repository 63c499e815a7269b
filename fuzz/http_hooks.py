"""What Schemathesis is taught of this API (loaded by it: see ``http_api.py``).

Random text is never the CID of a file, nor a file of a format that is accepted. So some
of the valid requests are given the parts of real ones, to get past the first checks.
"""

from __future__ import annotations

import base64
import json
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import schemathesis
from schemathesis.core.parameters import ParameterLocation
from schemathesis.transport.serialization import Binary

if TYPE_CHECKING:
    from schemathesis import Case, HookContext, SerializationContext

SEEDS = json.loads(Path(os.environ["VISION_O3_FUZZ_SEEDS"]).read_text())
RUNNER = SEEDS["runner"]
"""The user whose token is used. They must keep it, or all else is refused."""
SHARE = 0.3
"""Of the valid requests that are made real."""
_RANDOM = random.Random(SEEDS["seed"])


@schemathesis.serializer("application/vnd.ipld.car")
def as_it_is(context: SerializationContext, value: object) -> dict[str, bytes]:
    """Send bytes, and whatever else was made up, as they are."""
    del context
    if isinstance(value, Binary):
        return {"data": value.data}
    return {"data": value if isinstance(value, bytes) else str(value).encode()}


@schemathesis.hook
def before_call(context: HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Spare the runner's account, and make some of the valid requests real."""
    del context, kwargs
    found = case.path_parameters or {}
    if str(found.get("user", "")).strip() == RUNNER:
        found["user"] = "nobody"
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive:
        return
    make = _REAL.get(case.operation.definition.raw.get("operationId"))
    if make is not None and _RANDOM.random() < SHARE:
        case.freeze_metadata()
        make(case)
        for location in ParameterLocation:
            meta.clear_dirty(location)  # still valid: no schema can tell that of bytes


@schemathesis.hook
def filter_case(context: HookContext, case: Case) -> bool:
    """Leave out what is only wrong before it is written into a URL.

    Whatever stands in place of any text is a text there, or several of which the last
    counts; what is empty is not there at all.
    """
    del context
    meta = case.meta
    if meta is None or meta.generation.mode.is_positive:
        return True
    taken = {
        each["name"]: each.get("schema", {})
        for each in case.operation.definition.raw.get("parameters", ())
        if each.get("in") == "query"
    }
    return not any(
        value in (None, [], {})
        or (_takes_any_text(taken.get(name, {})) and not _fits(taken[name], value))
        for name, value in (case.query or {}).items()
    )


def _takes_any_text(schema: dict[str, Any]) -> bool:
    if any(word in schema for word in ("enum", "pattern", "format", "const")):
        return False
    if schema.get("type") == "array":
        return _takes_any_text(schema.get("items", {}))
    return schema.get("type") == "string" or any(
        map(_takes_any_text, schema.get("anyOf", ()))
    )


def _fits(schema: dict[str, Any], value: object) -> bool:
    if schema.get("type") == "array":
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return isinstance(value, str)


def _publish(case: Case) -> None:
    collection = case.operation.path.strip("/")
    filename, content = _RANDOM.choice(SEEDS["files"][collection])
    body = case.body if isinstance(case.body, dict) else {}
    case.body = {
        **{name: value for name, value in body.items() if name != "cid"},
        "name": _RANDOM.choice(SEEDS["names"]),
        "filename": filename,
        "file": Binary(base64.b64decode(content)),
    }


def _begin(case: Case) -> None:
    upload = _RANDOM.choice(SEEDS["uploads"])
    case.path_parameters["cid"] = upload["cid"]
    case.body = Binary(base64.b64decode(upload["sidecar"]))


def _send(case: Case) -> None:
    upload = _RANDOM.choice(SEEDS["uploads"])
    case.path_parameters["cid"] = upload["cid"]
    case.path_parameters["offset"] = str(upload["offset"])
    case.body = Binary(base64.b64decode(upload["leaf"]))


def _ask(case: Case) -> None:
    case.path_parameters["cid"] = _RANDOM.choice(SEEDS["uploads"])["cid"]


_REAL = {
    "models_publish": _publish,
    "datasets_publish": _publish,
    "uploads_begin": _begin,
    "uploads_send": _send,
    "uploads_read": _ask,
    "uploads_forget": _ask,
}
