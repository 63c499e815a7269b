"""The command ``admin check-store``: what the object store can do."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

from vision_o3.gateway.logs import log_to_stderr
from vision_o3.gateway.o3_client import O3Client
from vision_o3.registry.store_checks import Status
from vision_o3.settings import load_settings

if TYPE_CHECKING:
    from argparse import Namespace

    from vision_o3.registry.store_checks import Finding

_WIDTH = 88
_COLUMN = 30
"""Where sentences begin."""


def check_store(arguments: Namespace) -> int:
    """Print what the store can do, and the second store; 1 if something failed."""
    log_to_stderr()
    settings = load_settings()
    found = [(settings.store, O3Client.check(settings))]
    if settings.second_store is not None:
        found.append((settings.second_store, O3Client.check(settings, second=True)))
    failed = any(
        finding.status is Status.FAILED for _, each in found for finding in each
    )
    if arguments.json:
        stores = [
            {"store": location, "findings": [asdict(finding) for finding in findings]}
            for location, findings in found
        ]
        print(json.dumps({"ok": not failed, "stores": stores}))
    else:
        for location, findings in found:
            print(location)
            for finding in findings:
                print(_line(finding))
    return 1 if failed else 0


def _line(finding: Finding) -> str:
    """Return a finding as a row of the table, on as many lines as it takes."""
    status = str(finding.status)
    if finding.status is Status.FAILED:
        status = status.upper()
    capability = finding.capability.replace("_", " ")
    return textwrap.fill(
        finding.sentence,
        width=_WIDTH,
        initial_indent=f"  {status:<8} {capability}".ljust(_COLUMN),
        subsequent_indent=" " * _COLUMN,
        break_long_words=False,
        break_on_hyphens=False,
    )
