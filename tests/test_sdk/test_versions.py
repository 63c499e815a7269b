from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from tests.fakes.fake_gateway import FakeGateway
from vision_o3.errors import TransportError
from vision_o3.sdk.versions import DatasetInfo, ModelInfo, parse_info


def document(gateway: FakeGateway, **changes: Any) -> Any:
    found = {**gateway.publish("m", b"abc", tags=["a"], facts={"opset": 17}), **changes}
    return {name: value for name, value in found.items() if value is not ...}


def test_parses_a_model(gateway: FakeGateway) -> None:
    info = parse_info(ModelInfo, document(gateway, news="ignored", stale=True))
    assert (info.name, info.version, info.filename) == ("m", 1, "m.onnx")
    assert info.tags == ("a",)
    assert info.created_at == datetime(2026, 11, 24, 14, tzinfo=timezone.utc)
    assert (info.stale, info.created) == (False, None)
    assert hash(info) == hash(parse_info(ModelInfo, info.document()))


def test_document_is_what_was_parsed(gateway: FakeGateway) -> None:
    given = document(gateway, created=True)
    del given["links"]
    parsed = parse_info(ModelInfo, given)
    assert parsed.document() == {**given, "stale": False, "withdrawal": None}
    assert parse_info(ModelInfo, parsed.document()) == parsed


def test_parses_a_dataset(gateway: FakeGateway) -> None:
    given = gateway.publish("d", b"abc", "datasets", format="tar.gz")
    info = parse_info(DatasetInfo, given)
    assert (info.filename, info.manifest_cid) == ("d.tar.gz", None)


def test_a_time_in_another_zone_becomes_utc(gateway: FakeGateway) -> None:
    given = document(gateway, created_at="2026-11-24T15:00:00.123456+01:00")
    info = parse_info(ModelInfo, given)
    assert info.created_at.isoformat() == "2026-11-24T14:00:00.123456+00:00"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../etc/passwd"},
        {"name": "M"},
        {"name": 5},
        {"name": ...},
        {"file_format": "sh"},
        {"file_format": "../x"},
        {"file_format": "zip"},
        {"file_format": None},
        {"file_format": ...},
        {"cid": "Qm"},
        {"cid": None},
        {"version": 0},
        {"version": "1"},
        {"version": True},
        {"version": 1.5},
        {"file_size": -1},
        {"file_size": "3"},
        {"file_size": ...},
        {"created_at": "yesterday"},
        {"created_at": 5},
        {"tags": None},
        {"description": []},
        {"facts": []},
        {"facts": None},
    ],
)
def test_refuses_what_would_be_dangerous(gateway: FakeGateway, changes: Any) -> None:
    with pytest.raises(TransportError, match="not understood") as caught:
        parse_info(ModelInfo, document(gateway, **changes))
    assert not caught.value.retryable


@pytest.mark.parametrize("given", [None, [], "x", 5, {}])
def test_refuses_what_is_no_version(given: object) -> None:
    with pytest.raises(TransportError, match="not understood"):
        parse_info(ModelInfo, given)


@pytest.mark.parametrize("cid", ["Qm", "", 5, ["x"], "../../x"])
def test_refuses_what_names_no_manifest(gateway: FakeGateway, cid: object) -> None:
    given = gateway.publish("d", b"abc", "datasets", manifest_cid=cid)
    with pytest.raises(TransportError, match="not understood"):
        parse_info(DatasetInfo, given)
