from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.dataset_files import VOC_OBJECT, voc
from vision_o3.errors import InputError, LimitExceededError, UnsafeContentError
from vision_o3.formats import xml_documents
from vision_o3.formats.limits import Limits
from vision_o3.schemas.facts import NEW_FACTS

MIB = 1 << 20


def inspect(content: bytes, **limits: Any) -> dict[str, Any]:
    facts = xml_documents.inspect(io.BytesIO(content), len(content), Limits(**limits))
    NEW_FACTS.validate_python(facts)
    return facts


@pytest.mark.parametrize(
    ("content", "root", "elements"),
    [
        (b"<a/>", "a", 1),
        (b"\xef\xbb\xbf\r\n<!-- by hand --><a><b/><b>x</b></a>\n", "a", 3),
        (b'<?xml version="1.0" encoding="UTF-8" standalone="yes"?><a/>', "a", 1),
        ('<?xml version="1.0" encoding="UTF-16"?><é/>'.encode("utf-16"), "é", 1),
        ('<?xml version="1.0" encoding="latin1"?><é/>'.encode("latin-1"), "é", 1),
        ('<?xml version="1.0" encoding="cp1252"?><é/>'.encode("cp1252"), "é", 1),
        (b'<x:a xmlns:x="u" b="&lt;&#233;"><![CDATA[<!DOCTYPE]]>&amp;</x:a>', "x:a", 1),
        (b"<a>" + b"<b>" * 63 + b"</b>" * 63 + b"</a>", "a", 64),
        (b"<a>" + b"x" * (6 * MIB) + b"</a>", "a", 1),
    ],
)
def test_good_documents_pass(content: bytes, root: str, elements: int) -> None:
    assert inspect(content) == {
        "kind": "xml", "root": root, "elements": elements, "annotations": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no element"),
        (b" ", "no element"),
        (b"text", "not well-formed"),
        (b"<1/>", "not well-formed"),
        (b"<a>", "no element found"),
        (b"<a><b></a>", "mismatched"),
        (b"<a/><b/>", "junk"),
        (b"<a/>x", "junk"),
        (b"<a>&unknown;</a>", "undefined entity"),
        (b"<a>&#0;</a>", "invalid character"),
        (b'<a b="1" b="2"/>', "duplicate"),
        (b"<a>\xff</a>", "not well-formed"),
        (b"<a>\0</a>", "not well-formed"),
        (b"<!-- open", "unclosed"),
        (b"<html><body/></html>", "it is HTML"),
        (b"<HTML/>", "it is HTML"),
        (b"<!DOCTYPE html><a/>", "it is HTML"),
        (b"<!doctype html>", "not well-formed"),
        (b'<?xml version="1.0" encoding="shift_jis"?><a/>', "'shift_jis' is not"),
        (b'<?xml version="1.0" encoding="unicode_escape"?><a/>', "is not accepted"),
        (b'<?xml version="1.0" encoding="undefined"?><a/>', "is not accepted"),
        (b'<?xml version="1.0" encoding="iso-8859-12"?><a/>', "not well-formed"),
        (b'<?xml version="1.0" encoding="utf-16"?><a/>', "declaration is incorrect"),
    ],
)
def test_what_is_wrong_gets_said(content: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        inspect(content)


LAUGHS = "".join(
    f'<!ENTITY {name} "{f"&{inner};" * 10}">'
    for inner, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("<!DOCTYPE annotation><annotation/>", "DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd"><a/>', "DOCTYPE"),
        (f'<!DOCTYPE a [<!ENTITY a "ha">{LAUGHS}]><a>&j;</a>', "DOCTYPE"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', "DOCTYPE"),
        ('<!DOCTYPE a [<!ENTITY % b SYSTEM "http://127.0.0.1">%b;]><a/>', "DOCTYPE"),
        ('<?xml-stylesheet href="http://127.0.0.1/a.xsl"?><a/>', "xml-stylesheet"),
        ("<a><?php system('id') ?></a>", "php"),
        ("<a/><?php x?>", "php"),
    ],
)
def test_what_readers_act_on_is_refused(content: str, said: str) -> None:
    for encoding in ("utf-8", "utf-16"):
        with pytest.raises(UnsafeContentError, match=said) as caught:
            inspect(content.encode(encoding))
        assert caught.value.values["findings"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<a>" * 65, "VISION_O3_MAX_XML_DEPTH"),
        (b"<a>" * 100_000, "VISION_O3_MAX_XML_DEPTH"),
        (b"<a>" * 64 + b"<b/>" + b"</a>" * 64, "VISION_O3_MAX_XML_DEPTH"),
        (b"<a>" + b"x" * MIB + b"</a>", "VISION_O3_MAX_XML_BYTES"),
        (b"<!--" + b"x" * (5 * MIB), "too long"),
        (b"<a b='" + b"x" * (5 * MIB), "too long"),
        (b"<a" + b" " * (5 * MIB), "too long"),
    ],
)
def test_limits_are_kept(content: bytes, said: str) -> None:
    limits = {"xml_bytes": MIB} if said.endswith("BYTES") else {}
    with pytest.raises(LimitExceededError, match=said):
        inspect(content, **limits)


def test_voc_is_summed_up_as_another_parser_does() -> None:
    content = voc("dog", "cat", "dog")
    annotations = inspect(content)["annotations"]
    objects = ET.fromstring(content).findall("object")  # noqa: S314 - our own
    assert annotations == {
        "format": "voc",
        "images": 1,
        "annotations": len(objects),
        "boxes": 3,
        "classes": {"dog": 2, "cat": 1},
        "class_count": 2,
    }


@pytest.mark.parametrize(
    ("content", "images", "annotations", "boxes"),
    [
        (voc(), 1, 0, 0),
        (b"<all>" + voc("a", "b") + voc() + voc("a") + b"</all>", 3, 3, 3),
        (b"<annotation><object><name>a</name></object></annotation>", 1, 1, 0),
        (voc("a").replace(b"<ymax>9</ymax>", b""), 1, 1, 0),
        (voc("a").replace(b"<ymax>9", b"<ymax>nine"), 1, 1, 0),
        (voc("a").replace(b"<ymax>9", b"<ymax>nan"), 1, 1, 0),
        (voc("a").replace(b"<name>a</name>", b""), 1, 0, 0),
        (voc("a").replace(b"<name>a</name>", b"<name> </name>"), 1, 0, 0),
        (voc("a").replace(b"bndbox", b"box"), 1, 1, 0),
        (voc("a").replace(b">a<", b">a<!-- or -->\n<b/>b<"), 1, 1, 1),
    ],
)
def test_voc_in_other_forms(
    content: bytes, images: int, annotations: int, boxes: int
) -> None:
    facts = inspect(content)["annotations"]
    assert (facts["images"], facts["annotations"], facts["boxes"]) == (
        images, annotations, boxes,
    )  # fmt: skip


OBJECT = VOC_OBJECT.format(name="a", box=(1, 1, 2, 2)).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"<annotation/>",
        b"<annotation><filename>a.jpg</filename></annotation>",
        b"<annotation><objects>" + OBJECT + b"</objects></annotation>",
        b"<a><b>" + voc("a") + b"</b></a>",
        OBJECT,
    ],
)
def test_what_is_not_voc_is_not_taken_for_it(content: bytes) -> None:
    assert inspect(content)["annotations"] is None
    assert xml_documents.voc(content, Limits()) is None


@pytest.mark.parametrize(
    "content", [b"", voc("a")[:-1], b"<!DOCTYPE a>" + voc("a"), b"<a>" * 99]
)
def test_a_broken_file_among_others_is_not_understood(content: bytes) -> None:
    assert xml_documents.voc(content, Limits()) is None


@given(
    st.sampled_from([voc("dog", "cat"), b"<a>" + voc() + b"</a>"]),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3),
    st.integers(0, 1000),
    st.binary(max_size=20),
)
def test_no_other_error_comes_out(
    content: bytes, changes: list[tuple[int, int]], cut: int, more: bytes
) -> None:
    changed = bytearray(content)
    for at, value in changes:
        changed[at % len(changed)] = value
    for attempt in (bytes(changed), bytes(changed[:cut]) + more, more):
        with suppress(ValueError, InputError):
            inspect(attempt)
