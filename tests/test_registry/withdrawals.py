"""Wishes of tests: who wants what to become of a version."""

from __future__ import annotations

from tests.test_registry.conftest import Registry
from vision_o3.registry.audit import OPERATOR, Actor
from vision_o3.registry.purging import Purged, Purger
from vision_o3.registry.values import Version
from vision_o3.registry.withdrawing import Wish, Withdrawer
from vision_o3.storage.base import ObjectStore

ANN = Actor("ann", "192.0.2.1", "request-1")


def deprecated(reason: str = "Use v2.", **more: bool) -> Wish:
    return Wish("deprecated", reason, ANN, **more)


def blocked(reason: str = "It sees ghosts.", **more: bool) -> Wish:
    return Wish("blocked", reason, ANN, **more)


def lifted(reason: str | None = None, **more: bool) -> Wish:
    return Wish("lifted", reason, ANN, **more)


def purging(reason: str = "A court said so.") -> Wish:
    return Wish("purged", reason, OPERATOR, is_admin=True)


def withdrawer_of(registry: Registry) -> Withdrawer:
    return Withdrawer(registry.database, registry.store, registry.timing)


def purge(
    registry: Registry,
    version: Version,
    second: ObjectStore | None = None,
    store: ObjectStore | None = None,
) -> Purged:
    purger = Purger(registry.database, store or registry.store, second, registry.timing)
    return purger.purge(version.cid, purging())
