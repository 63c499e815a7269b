from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fakes.dataset_files import coco, coco_bytes
from vision_o3.errors import InputError, LimitExceededError
from vision_o3.formats import json_documents
from vision_o3.formats.limits import Limits
from vision_o3.schemas.facts import NEW_FACTS

MIB = 1 << 20


def inspect(content: bytes, **limits: Any) -> dict[str, Any]:
    facts = json_documents.inspect(io.BytesIO(content), len(content), Limits(**limits))
    NEW_FACTS.validate_python(facts)
    return facts


def fed(content: bytes, size: int) -> dict[str, Any]:
    """The facts of a document that comes in chunks of ``size`` bytes."""
    reader = json_documents.CocoReader(Limits())
    for start in range(0, len(content), size):
        reader.feed(content[start : start + size])
    reader.finish()
    found = reader.coco()
    return {
        "kind": "json",
        "root": reader.root,
        "items": reader.items,
        "annotations": found and found.facts("coco"),
    }


def refuse(_: str) -> NoReturn:
    raise ValueError


def no_pair_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError
    return dict(pairs)


def strictly(content: bytes) -> dict[str, Any] | list[Any]:
    """What the standard library says, of an object or array in UTF-8."""
    text = content.decode("utf-8-sig")
    value = json.loads(
        text,
        parse_constant=refuse,
        parse_int=float,
        object_pairs_hook=no_pair_twice,
    )
    if not isinstance(value, dict | list):
        raise ValueError  # noqa: TRY004 - as the others
    return value


def accepts(read: Callable[[bytes], Any], content: bytes) -> bool:
    try:
        read(content)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("content", "root", "items"),
    [
        (b"{}", "object", 0),
        (b" [ ] \n", "array", 0),
        (b"\xef\xbb\xbf[1]", "array", 1),
        (b'["a,b", [1, 2], {"a": [3]}, true, null, -1.5e-7, [[4]], 5]', "array", 8),
        (b'{"a": 1, "b": [1, 2], "c": {"d": [{}]}, "\\u00e9": ""}', "object", 4),
        (b'{"a": 1, "A": 1, "a ": {"a": 1}}', "object", 3),
        ('{"é": "\\ud800", "日本": "😀"}'.encode(), "object", 2),
        (b"[" + b"9" * 9_000 + b"]", "array", 1),
        (b"[1e999, -0, 0.0, 1E+2]", "array", 4),
        (b"[" + b"1," * 200_000 + b"1]", "array", 200_001),
        (b"[" + b"[1]," * 200_000 + b"[1]]", "array", 200_001),
        (b"[" + b" " * 300_000 + b'"' + b"\\n" * 200_000 + b'"]', "array", 1),
        (b" " * 262_140 + b"[true, 12, false]" + b" " * 300_000, "array", 3),
        (b"[" + b" " * (20 * MIB) + b"]", "array", 0),
        (b'{"a":' + b" " * 300_000 + b'[{"b":' + b" " * 9000 + b"{}}]}", "object", 1),
        (b'{"a":' + b"[" * 63 + b"]" * 63 + b"}", "object", 1),
    ],
)
def test_good_documents_pass(content: bytes, root: str, items: int) -> None:
    facts = inspect(content)
    assert facts == {
        "kind": "json", "root": root, "items": items, "annotations": None,
    }  # fmt: skip
    assert fed(content, 1009) == facts


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cut short"),
        (b" ", "cut short"),
        (b'"text"', r"begins with \{ or \["),
        (b"1", "begins with"),
        (b"nothing", "begins with"),
        (b"[1", "cut short"),
        (b"[", "cut short"),
        (b'{"a"', "cut short"),
        (b'{"a":', "cut short"),
        (b'{"a":1,', "cut short"),
        (b"[1]]", "more after its end"),
        (b"[1] [2]", "more after its end"),
        (b"{} x", "more after its end"),
        (b"[1,]", "not JSON"),
        (b"[,1]", "not JSON"),
        (b"[1 2]", "out of place"),
        (b"[1}", "out of place"),
        (b'{"a":1]', "out of place"),
        (b'{"a" 1}', "out of place"),
        (b'{"a":1,}', "no name"),
        (b"{a:1}", "no name"),
        (b"{1:1}", "no name"),
        (b"['a']", "not JSON"),
        (b"[NaN]", "not JSON"),
        (b"[-Infinity]", "not JSON"),
        (b'{"a":Infinity}', "not JSON"),
        (b"[01]", "out of place"),
        (b"[+1]", "not JSON"),
        (b"[.5]", "not JSON"),
        (b"[1.]", "out of place"),
        (b"[1e]", "out of place"),
        (b"[-]", "not JSON"),
        (b"[0x1]", "out of place"),
        (b"[True]", "not JSON"),
        (b"[nul]", "not JSON"),
        (b"[truefalse]", "out of place"),
        (b'["\\x"]', "not JSON"),
        (b'["\\u12g4"]', "not JSON"),
        (b'["\n"]', "not JSON"),
        (b'["\0"]', "not JSON"),
        (b'["a]', "not JSON"),
        (b"[1] // comment", "more after"),
        (b"[/* comment */ 1]", "not JSON"),
        (b"[\xc2\xa01]", "not JSON"),
        (b"[\x0c1]", "not JSON"),
        (b"\xef\xbb\xbf\xef\xbb\xbf[]", "begins with"),
        (b'["\xff"]', "not UTF-8"),
        (b'["\xed\xa0\x80"]', "not UTF-8"),
        (b'["\xc0\x80"]', "not UTF-8"),
        (b'["\xc3', "not UTF-8"),
        ("[]".encode("utf-16"), "not UTF-8"),
        ("[]".encode("utf-16-le"), "not JSON"),
        (b'{"a":[1],[2]}', "no name"),
        (b'{"a":[[1]],[2]}', "no name"),
        (b'{"a":1,"a":2}', 'has "a" twice'),
        (b'{"a":1,"a":"' + b"x" * 400_000 + b'"}', 'has "a" twice'),
        (b'{"a":1,"\\u0061":2}', 'has "a" twice'),
        (b'{"b":[{"a":[],"c":{},"a":[]}]}', 'has "a" twice'),
        (b'{"a":' + b"1" * 40_000 + b',"a":2}', 'has "a" twice'),
        (b'{"' + b"a" * 90_000 + b'":1,"' + b"a" * 90_000 + b'":1}', "twice"),
        (b"[" + b"1," * 200_000 + b"01]", "out of place"),
    ],
)
def test_what_is_wrong_gets_said(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        inspect(content)
    assert not accepts(lambda content: fed(content, 1), content)
    assert not accepts(strictly, content)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 65 + b"]" * 65,
        b"[" * 64 + b"[1,2]" + b"]" * 64,
        b'{"a":' * 64 + b"[1,2]" + b"}" * 64,
        b"[" * 30_000 + b"]" * 30_000,
    ],
)
def test_depth_is_limited(content: bytes) -> None:
    with pytest.raises(LimitExceededError, match="VISION_O3_MAX_JSON_DEPTH") as caught:
        inspect(content)
    assert caught.value.values["limit"] == 64


def test_depth_of_the_limit_passes() -> None:
    content = b"[" * 64 + b"1, 2" + b"]" * 64
    assert inspect(content)["items"] == 1
    assert inspect(b"[" * 63 + b"[1],[2]" + b"]" * 63)["items"] == 1


def test_size_is_limited() -> None:
    assert inspect(b"[12345678]", json_bytes=10)["items"] == 1
    with pytest.raises(LimitExceededError, match="VISION_O3_MAX_JSON_BYTES"):
        inspect(b"[123456789]", json_bytes=10)


@pytest.mark.parametrize(
    "content",
    [
        b"[" + b"1" * (17 * MIB),
        b'["' + b"a" * (17 * MIB),
        b'{"' + b"\\u0041" * (3 * MIB),
        b'{"a":-1.' + b"0" * (17 * MIB),
    ],
    ids=["number", "text", "name", "fraction"],
)
def test_endless_tokens_are_refused(content: bytes) -> None:
    with pytest.raises(LimitExceededError, match="too long"):
        inspect(content)


def nested(count: int) -> bytes:
    """An object of ``count`` members in one of two."""
    members = b",".join(b'"%d":0' % number for number in range(count))
    return b'{"a":0,"b":{%b}}' % members


def test_names_that_are_compared_are_limited() -> None:
    assert inspect(nested(999_990))["items"] == 2
    with pytest.raises(LimitExceededError, match="too many members"):
        inspect(b'{"c":' + nested(1_050_000))


BOXES: list[tuple[int, list[float] | None]] = [
    (1, [1, 2, 3, 4]),
    (1, [0.5, 1e-3, 3, 4]),
    (2, None),
    (2, [1, 2, 3]),
    (3, [1, 2, 3, 4]),
    (77, [1, 2, 3, 4]),
]
NAMES = {1: "cat", 2: "dog", 3: 'a "zebra"\n', 4: "unused"}


def test_coco_is_summed_up() -> None:
    assert inspect(coco_bytes(4, BOXES, NAMES))["annotations"] == {
        "format": "coco",
        "images": 4,
        "annotations": 6,
        "boxes": 4,
        "classes": {"cat": 2, "77": 1, 'a "zebra"': 1, "dog": 0, "unused": 0},
        "class_count": 5,
    }


@pytest.mark.parametrize("size", [1, 7, 100, 5000, 70_001, MIB])
def test_coco_is_the_same_however_it_is_cut(size: int) -> None:
    boxes = BOXES * (50 if size < 100 else 2000)
    document = coco(99, boxes, NAMES)
    content = json.dumps(document, indent=1).encode()
    facts = fed(content, size)
    counts = Counter(
        NAMES.get(item["category_id"], str(item["category_id"])).strip()
        for item in document["annotations"]
        if len(item.get("bbox", ())) == 4
    )
    assert facts["items"] == len(document)
    assert facts["annotations"]["boxes"] == counts.total() > 100
    assert +Counter(facts["annotations"]["classes"]) == counts


def test_coco_of_odd_writers_is_understood() -> None:
    content = b"""{
        "annotations": [
            {"bbox": [1, 2, 3, 4], "category_id": 5.0},
            {"b\\u0062ox": [1, 2, 3, 4], "category_id": "x"},
            {"bbox": [1, 2, 3, 4]}, {"bbox": [[1], 2, 3, 4]}, {"bbox": "1,2,3,4"}, {}
        ],
        "categories": [
            {"name": "five", "id": 5}, {"name": "twice", "id": 5}, {"id": 6},
            {"name": 7, "id": 7}, {"name": ["a"], "id": 8}, {"name": "none"}
        ],
        "images": []
    }"""
    assert inspect(content)["annotations"] == {
        "format": "coco",
        "images": 0,
        "annotations": 6,
        "boxes": 3,
        "classes": {'"x"': 1, "five": 1, "6": 0, "7": 0, "8": 0},
        "class_count": 5,
    }


@pytest.mark.parametrize(
    "changed",
    [
        {"images": {}},
        {"annotations": "none"},
        {"categories": [1]},
        {"images": [{}, [1]]},
        {"images": [{}, [[]]]},
        {"annotations": [None, {}]},
        {"categories": [{}, "a" * 20_000]},
    ],
)
def test_what_is_not_coco_is_not_taken_for_it(changed: dict[str, Any]) -> None:
    document = {**coco(4, BOXES, NAMES), **changed}
    assert inspect(json.dumps(document).encode())["annotations"] is None
    assert inspect(json.dumps([document]).encode())["annotations"] is None
    assert inspect(json.dumps({"a": document}).encode())["annotations"] is None


def test_classes_are_bounded_and_boxes_are_not() -> None:
    box: list[float] = [1, 2, 3, 4]
    content = coco_bytes(
        1,
        [(number, box) for number in range(11_000)],
        {number: f"class {number}" for number in range(11_000)},
    )
    annotations = inspect(content)["annotations"]
    assert (annotations["boxes"], annotations["class_count"]) == (11_000, 10_000)
    assert len(annotations["classes"]) == 200


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=5)
    | st.dictionaries(st.text(max_size=4), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip
JSON_BYTES = b'{}[]:,"\\ \n0123456789.-+eEtrufalsn\x00\x1f\x7f\xff\xc3\xa9'


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    value = draw(st.lists(VALUES) | st.dictionaries(st.text(max_size=3), VALUES))
    indent = draw(st.sampled_from([None, 1]))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), indent=indent)
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(content) - 1))
        end = at + draw(st.integers(0, 2))
        content[at:end] = draw(st.lists(st.sampled_from(JSON_BYTES), max_size=2))
        if not content:
            break
    return bytes(content)


@given(damaged() | st.binary(max_size=50), st.integers(1, 30))
@example(b'{"a":[1.', 3)
@example(b"[1.5e+3]", 5)
@example(b'["\\ud83d\\ude00"]', 4)
@example(b'{"":0,"\x7f":0}', 1)
def test_what_the_standard_library_accepts_is_accepted(
    content: bytes, size: int
) -> None:
    expected = accepts(strictly, content)
    try:
        facts = inspect(content, json_depth=10_000)
    except ValueError:
        assert not expected
        assert not accepts(lambda content: fed(content, size), content)
        return
    assert expected
    assert facts["items"] == len(strictly(content))
    assert fed(content, size) == facts


@given(st.binary(max_size=200) | damaged())
def test_no_other_error_comes_out(content: bytes) -> None:
    with suppress(ValueError, InputError):
        inspect(content, json_depth=3)
