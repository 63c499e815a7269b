"""What a gateway is made of, and what an audit of it says."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.supply_chain import (
    CLEAN,
    REQUIREMENTS,
    UNKNOWN,
    VULNERABLE,
    Audit,
    Pin,
    bill_of_materials,
    parse_audit,
    read_lock,
    report,
    unlicensed,
)

REPOSITORY = Path(__file__).parent.parent
TOOLS = REPOSITORY / ".venv" / "supply" / "ready"
LOCK = """\
alpha[extra]==1.0 ; python_full_version < '3.12' \\
    --hash=sha256:{a} \\
    --hash=sha256:{b}
    # via vision-o3 (pyproject.toml)
Alpha==2.0 ; python_full_version >= '3.12' \\
    --hash=sha256:{c}
    # via vision-o3 (pyproject.toml)
beta_b==3.post1 \\
    --hash=sha256:{d}
    # via
    #   -c requirements/dev.txt
    #   alpha
"""
A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


@pytest.fixture
def pins(tmp_path: Path) -> list[Pin]:
    lock = tmp_path / "lock.txt"
    lock.write_text(LOCK.format(a=A, b=B, c=C, d=D))
    return read_lock(lock)


def test_lock_is_read_with_every_version_hash_and_reason(pins: list[Pin]) -> None:
    assert pins == [
        Pin("alpha", "1.0", (A, B), frozenset({"vision-o3"})),
        Pin("alpha", "2.0", (C,), frozenset({"vision-o3"})),
        Pin("beta-b", "3.post1", (D,), frozenset({"alpha"})),
    ]


def test_real_locks_pin_every_package_with_a_hash() -> None:
    for lock in REQUIREMENTS.glob("*.txt"):
        pins = read_lock(lock)
        named = sum(line[0].isalnum() for line in lock.read_text().splitlines() if line)
        assert len(pins) == named, lock.name
        assert all(pin.hashes for pin in pins), lock.name


def test_bill_of_materials_says_what_needs_what(pins: list[Pin]) -> None:
    licence = [{"license": {"id": "MIT"}}]
    document = bill_of_materials(
        pins,
        {"name": "vision-o3", "version": "9", "type": "application"},
        {"pkg:pypi/alpha@1.0": {"licenses": licence, "description": "One."}},
    )
    needs = {
        each["ref"]: each.get("dependsOn", []) for each in document["dependencies"]
    }
    assert needs == {
        "pkg:pypi/vision-o3@9": ["pkg:pypi/alpha@1.0", "pkg:pypi/alpha@2.0"],
        "pkg:pypi/alpha@1.0": ["pkg:pypi/beta-b@3.post1"],
        "pkg:pypi/alpha@2.0": ["pkg:pypi/beta-b@3.post1"],
        "pkg:pypi/beta-b@3.post1": [],
    }
    first = document["components"][0]
    assert first["licenses"] == licence
    assert first["externalReferences"][0]["hashes"] == [
        {"alg": "SHA-256", "content": A},
        {"alg": "SHA-256", "content": B},
    ]
    assert unlicensed(document) == ["alpha 2.0", "beta-b 3.post1"]


def test_gateways_bill_is_whole_valid_and_the_same_each_time(tmp_path: Path) -> None:
    if not TOOLS.exists():
        assert os.environ.get("CI") != "true", f"{TOOLS.parent} is missing"
        pytest.skip(f"CycloneDX is not installed in {TOOLS.parent}")
    target = tmp_path / "sbom" / "gateway.json"
    subprocess.run([REPOSITORY / "scripts" / "sbom", target], check=True)
    document = json.loads(target.read_text())
    assert "serialNumber" not in document
    assert set(document["metadata"]) == {"component"}  # no time, no tools
    components = {found["purl"]: found for found in document["components"]}
    assert set(components) == {
        pin.purl for pin in read_lock(REQUIREMENTS / "gateway.txt")
    }
    assert components["pkg:pypi/" + _pinned("fastapi")]["licenses"]
    assert str(REPOSITORY) not in target.read_text()
    printed = subprocess.run(
        [REPOSITORY / "scripts" / "sbom"], check=True, stdout=subprocess.PIPE, text=True
    )
    assert printed.stdout == target.read_text()


def _pinned(name: str) -> str:
    (pin,) = (
        pin for pin in read_lock(REQUIREMENTS / "gateway.txt") if pin.name == name
    )
    return f"{pin.name}@{pin.version}"


def answer(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


ASKED = {"alpha": "1.0", "beta-b": "2"}
ALPHA = {"name": "Alpha", "version": "1.0", "vulns": []}
BETA = {"name": "beta_b", "version": "2", "vulns": [{"id": "PYSEC-1"}, {"id": "X"}]}


def test_vulnerable_package_fails_the_audit(capsys: pytest.CaptureFixture[str]) -> None:
    found = parse_audit(answer(ALPHA, BETA), ASKED)
    assert found is not None
    assert report(found, "pypi", 2, 1) == VULNERABLE
    assert "VULNERABLE: beta-b 2: PYSEC-1, X" in capsys.readouterr().out


@pytest.mark.parametrize(
    "beta",
    [
        [{"name": "beta_b", "skip_reason": "not found"}],
        [],
    ],
    ids=["skipped", "not mentioned"],
)
def test_package_that_the_source_does_not_know_is_not_clean(
    beta: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    found = parse_audit(answer(ALPHA, *beta), ASKED)
    assert found is not None
    assert report(found, "pypi", 2, 1) == UNKNOWN
    assert "beta-b 2" in capsys.readouterr().out


def test_audit_without_findings_is_clean() -> None:
    assert parse_audit(answer(ALPHA), {"alpha": "1.0"}) == Audit()
    assert report(Audit(), "pypi", 1, 1) == CLEAN


@pytest.mark.parametrize("text", ["", "Traceback", "[]", '{"other": 1}'])
def test_audit_that_broke_off_says_nothing(text: str) -> None:
    assert parse_audit(text, ASKED) is None
