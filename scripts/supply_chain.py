"""What a gateway is made of, and whether any of it is known to be vulnerable.

    scripts/sbom [FILE]     a bill of materials (CycloneDX 1.6, JSON), reproducible
    scripts/audit           known vulnerabilities of all that requirements/ pins

Both read the lock files. Licences come from the installed packages of .venv; the
tools, CycloneDX's and pip-audit, lie in .venv/supply (requirements/supply.txt).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REPOSITORY = Path(__file__).parent.parent
REQUIREMENTS = REPOSITORY / "requirements"
PROJECT = "vision-o3"
CLEAN, VULNERABLE, UNKNOWN = 0, 1, 3
"""Exit codes of the audit; 3: no source of advisories said anything."""
SOURCES = ("pypi", "osv")
"""Services that pip-audit asks, in this order, until one answers."""

_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[^]]*\])?==(?P<version>[^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_VIA = re.compile(r"#\s+(?:via\s+)?(?!via$)([A-Za-z0-9._-]+)(?: \(pyproject\.toml\))?$")


@dataclass(frozen=True)
class Pin:
    """One package that a lock file pins."""

    name: str
    version: str
    hashes: tuple[str, ...] = ()
    wanted_by: frozenset[str] = frozenset()
    """Names of the packages that need it."""

    @property
    def purl(self) -> str:
        """The package's name in bills of materials and advisories."""
        return f"pkg:pypi/{self.name}@{self.version}"


@dataclass
class Audit:
    """What a source of advisories said."""

    vulnerable: dict[str, list[str]] = field(default_factory=dict)
    """Advisories of each package, as ``name version``."""
    unknown: list[str] = field(default_factory=list)
    """Packages that the source does not know, likewise."""


def read_lock(path: Path) -> list[Pin]:
    """Return all that a lock file pins, for every Python and platform."""
    pins = []
    for block in re.split(r"\n(?=[A-Za-z0-9])", path.read_text()):
        match = _PIN.match(block)
        if match is None:
            continue
        wanted_by = (_VIA.search(line) for line in block.splitlines())
        pins.append(
            Pin(
                normalized(match["name"]),
                match["version"],
                tuple(sorted(_HASH.findall(block))),
                frozenset(normalized(found[1]) for found in wanted_by if found),
            )
        )
    return pins


def normalized(name: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def bill_of_materials(
    pins: list[Pin], root: dict[str, Any], installed: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return a gateway's bill of materials: each package, its hashes and licences.

    It depends on the lock file and what is installed alone: no time, no serial number.

    Args:
        pins: All that the gateway's lock file pins.
        root: The component that is the gateway itself.
        installed: What the packages say of themselves, by purl.
    """
    purls = defaultdict(list)
    for pin in pins:
        purls[pin.name].append(pin.purl)
    reference = f"pkg:pypi/{PROJECT}@{root['version']}"
    purls[PROJECT] = [reference]
    needs: dict[str, set[str]] = {reference: set()}
    for pin in pins:
        needs.setdefault(pin.purl, set())
        for name in pin.wanted_by & set(purls):
            for user in purls[name]:
                needs.setdefault(user, set()).add(pin.purl)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**root, "bom-ref": reference}},
        "components": [
            _component(pin, installed.get(pin.purl, {}))
            for pin in sorted(pins, key=lambda pin: (pin.name, pin.version))
        ],
        "dependencies": [
            {"ref": user, **({"dependsOn": sorted(used)} if used else {})}
            for user, used in sorted(needs.items())
        ],
    }


def _component(pin: Pin, said: dict[str, Any]) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": pin.purl,
        "name": pin.name,
        "version": pin.version,
        "purl": pin.purl,
        "scope": "required",
    }
    for kept in ("description", "licenses"):
        if said.get(kept):
            component[kept] = said[kept]
    # Not the component's own `hashes`: a lock names every file that a platform may
    # install, one hash each.
    files = {
        "type": "distribution",
        "url": pin.purl,
        "hashes": [{"alg": "SHA-256", "content": found} for found in pin.hashes],
    }
    home = [
        each
        for each in said.get("externalReferences", [])
        if each["type"] in {"vcs", "website"}
    ]
    component["externalReferences"] = [files, *home]
    return component


def unlicensed(document: dict[str, Any]) -> list[str]:
    """Return the packages whose licence a bill of materials does not say."""
    return [
        f"{found['name']} {found['version']}"
        for found in document["components"]
        if not found.get("licenses")
    ]


def write_sbom(target: Path | None) -> int:
    """Write the gateway's bill of materials to a file, or to standard output."""
    # Only here: the rest is also used where CycloneDX's library is not installed.
    from cyclonedx.schema import SchemaVersion  # type: ignore[import-not-found]  # noqa: PLC0415
    from cyclonedx.validation.json import (  # type: ignore[import-not-found]  # noqa: PLC0415
        JsonStrictValidator,
    )

    described = _describe_environment()
    document = bill_of_materials(
        read_lock(REQUIREMENTS / "gateway.txt"),
        described["metadata"]["component"],
        {_purl_of(found): found for found in described["components"]},
    )
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        print(f"The bill of materials is not valid: {wrong}", file=sys.stderr)
        return 1
    if target is None:
        sys.stdout.write(text)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        print(f"{target}: {len(document['components'])} packages.", file=sys.stderr)
    without = unlicensed(document)
    if without:
        print(
            "Licence not said by the package, or the package not for this Python and "
            f"platform: {', '.join(without)}.",
            file=sys.stderr,
        )
    return 0


def _describe_environment() -> dict[str, Any]:
    """Return what CycloneDX finds installed in .venv, and what it says of us."""
    done = subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "environment", "--output-reproducible"]
        + ["--sv", "1.6", "--pyproject", str(REPOSITORY / "pyproject.toml")]
        + [str(REPOSITORY / ".venv" / "bin" / "python")],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    described: dict[str, Any] = json.loads(done.stdout)
    return described


def _purl_of(component: dict[str, Any]) -> str:
    return Pin(normalized(component["name"]), component.get("version", "")).purl


def audit() -> int:
    """Say which pinned packages are known to be vulnerable; return an exit code."""
    locks = sorted(path for path in REQUIREMENTS.glob("*.txt"))
    pins = {pin.purl: pin for path in locks for pin in read_lock(path)}
    for source in SOURCES:
        found = _ask(source, pins.values())
        if found is not None and len(found.unknown) < len(pins):
            return report(found, source, len(pins), len(locks))
        print(f"The advisories of {source!r} cannot be had here.", file=sys.stderr)
    print(
        f"NOT AUDITED: no source of advisories answered for the {len(pins)} packages "
        f"of {len(locks)} lock files. Run scripts/audit where one can be reached.",
        file=sys.stderr,
    )
    return UNKNOWN


def report(found: Audit, source: str, packages: int, locks: int) -> int:
    """Say what an audit found; return its exit code."""
    for package, advisories in sorted(found.vulnerable.items()):
        print(f"VULNERABLE: {package}: {', '.join(advisories)}")
    if found.unknown:
        print(f"NOT AUDITED, {source!r} does not know: {', '.join(found.unknown)}")
    print(
        f"{packages} packages of {locks} lock files against {source!r}: "
        f"{len(found.vulnerable)} vulnerable, {len(found.unknown)} not audited."
    )
    if found.vulnerable:
        return VULNERABLE
    return UNKNOWN if found.unknown else CLEAN


def parse_audit(text: str, asked: Mapping[str, str]) -> Audit | None:
    """Return what pip-audit printed as JSON, or ``None`` if it broke off.

    A package that it says nothing of is one that was not audited.

    Args:
        text: What it printed.
        asked: The versions that it was asked about, by package.
    """
    try:
        packages = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return None
    answered = {
        normalized(package["name"]): package["vulns"]
        for package in packages
        if "skip_reason" not in package
    }
    found = Audit()
    for name, version in asked.items():
        if name not in answered:
            found.unknown.append(f"{name} {version}")
        elif answered[name]:
            advisories = [each["id"] for each in answered[name]]
            found.vulnerable[f"{name} {version}"] = advisories
    return found


def _ask(source: str, pins: Iterable[Pin]) -> Audit | None:
    """Return what a service says of packages, or ``None`` if it does not answer.

    A lock for several Pythons may pin a package more than once, and pip-audit takes
    one version at a time. So the versions are shared out over several runs.
    """
    versions = defaultdict(list)
    for pin in pins:
        versions[pin.name].append(pin.version)
    total = Audit()
    for turn in range(max(map(len, versions.values()))):
        asked = {
            name: found[turn]
            for name, found in sorted(versions.items())
            if turn < len(found)
        }
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
            requirements.writelines(f"{n}=={v}\n" for n, v in asked.items())
            requirements.flush()
            done = subprocess.run(
                [sys.executable, "-m", "pip_audit", "--requirement", requirements.name]
                + ["--no-deps", "--disable-pip", "--format", "json"]
                + ["--vulnerability-service", source, "--progress-spinner", "off"],
                check=False,
                capture_output=True,
                text=True,
            )
        found_now = parse_audit(done.stdout, asked)
        if found_now is None:
            return None
        total.vulnerable |= found_now.vulnerable
        total.unknown += found_now.unknown
    return total


if __name__ == "__main__":
    if sys.argv[1:] == ["audit"]:
        sys.exit(audit())
    if sys.argv[1:2] == ["sbom"] and len(sys.argv) <= 3:
        sys.exit(write_sbom(Path(sys.argv[2]) if len(sys.argv) == 3 else None))
    sys.exit("Say: sbom [FILE], or audit")
