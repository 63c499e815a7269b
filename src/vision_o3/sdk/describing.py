"""A version as lines for people, with the facts that were read from its file.

Facts come from the gateway and are not trusted to be of their shape: what is not is
shown as it is.
"""

from __future__ import annotations

import json
from typing import Any, Iterable, Iterator, List, Mapping, Optional, Tuple

from vision_o3.sdk.progress import in_units

_LISTED = 8
"""Items of a list or table that are shown; JSON has the others."""
_NEST = "  "
_NOTHING: Tuple[object, ...] = (None, "", [], {})
_DEEPEST = 4
_IN_UNITS = ("bytes", "unpacked_bytes")
_LARGEST = 2**63 - 1
_COUNTED = {
    "tensors": "tensor_count",
    "weights": "weight_count",
    "labels": "label_count",
    "classes": "class_count",
}
"""Lists that are cut, and the fact that says how long they are."""


def describe_version(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a version's document as lines: a field each, facts indented."""
    for key, value in document.items():
        if key == "facts" or value in (*_NOTHING, False):
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        if key == "withdrawal" and isinstance(value, dict):
            shown = f"{value.get('state')}: {value.get('reason')} ({value.get('at')})"
        yield f"{key + ':':14}{shown}"
    facts = document.get("facts")
    if isinstance(facts, dict) and facts:
        yield "facts:"
        yield from _indented(_fields(facts, 1))


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (_NEST + line for line in lines)


def _fields(facts: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Yield the lines of an object's fields."""
    for key, value in facts.items():
        if value in _NOTHING:
            continue
        if key == "safety" and isinstance(value, dict):
            yield from _safety(value)
        elif isinstance(value, list) and all(map(_is_tensor, value)):
            yield f"{key}:"
            yield from _indented(_tensors(value, _total(key, facts)))
        elif isinstance(value, list):
            yield f"{key}: {_list(value, _total(key, facts))}"
        elif not isinstance(value, dict):
            yield f"{key}: {_scalar(value, key)}"
        elif all(map(_is_count, value.values())):
            yield f"{key}: {_counts(value, _total(key, facts))}"
        elif depth < _DEEPEST:
            yield f"{key}:"
            yield from _indented(_fields(value, depth + 1))
        else:
            yield f"{key}: {json.dumps(value)}"


def _tensors(tensors: List[Any], total: Optional[int]) -> Iterator[str]:
    yield from map(_tensor, tensors[:_LISTED])
    more = max(len(tensors), total or 0) - _LISTED
    if more > 0:
        yield f"… {more:,} more"


def _safety(safety: Mapping[str, Any]) -> Iterator[str]:
    verdict = str(safety.get("verdict", "unknown"))
    if verdict == "safe":
        yield "safety: safe"
        return
    yield f"safety: {verdict.upper()} – loading this file may run its author's code"
    findings = safety.get("findings")
    for finding in findings if isinstance(findings, list) else ():
        yield f"{_NEST}! {_scalar(finding)}"


def _tensor(tensor: Mapping[str, Any]) -> str:
    """Return such as ``images: float32[1,3,640,640]``; ``?`` is a free dimension."""
    shape = tensor.get("shape")
    dims = "…"
    if isinstance(shape, list):
        dims = ",".join("?" if dim is None else str(dim) for dim in shape)
    text = f"{tensor['name']}: {tensor['dtype']}[{dims}]"
    quantization = tensor.get("quantization")
    if isinstance(quantization, dict):
        scale, zero = quantization.get("scale"), quantization.get("zero_point")
        text += f"  scale {scale:g}" if isinstance(scale, float) else ""
        text += f"  zero point {zero}"
    return text


def _counts(counts: Mapping[str, int], total: Optional[int]) -> str:
    if set(_IN_UNITS) & set(counts):  # not counts of one kind: no ranks
        return ", ".join(f"{name} {_scalar(counts[name], name)}" for name in counts)
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    shown = [f"{name} {counts[name]:,}" for name in ranked[:_LISTED]]
    return _joined(shown, len(counts), total)


def _list(values: List[Any], total: Optional[int]) -> str:
    shown = [_scalar(value) for value in values[:_LISTED]]
    return _joined(shown, len(values), total)


def _joined(shown: List[str], listed: int, total: Optional[int]) -> str:
    more = max(listed, total or 0) - len(shown)
    return ", ".join([*shown, f"… {more:,} more"] if more > 0 else shown)


def _total(key: str, facts: Mapping[str, Any]) -> Optional[int]:
    total = facts.get(_COUNTED.get(key, ""))
    return total if _is_count(total) else None


def _scalar(value: object, key: str = "") -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        in_bytes = key in _IN_UNITS and value <= _LARGEST
        return in_units(value) if in_bytes else f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_tensor(value: object) -> bool:
    return isinstance(value, dict) and "name" in value and "dtype" in value
