from __future__ import annotations

from vision_o3.content.dag import cid_of_bytes
from vision_o3.registry.keeping import Kept

A, B, C = (cid_of_bytes(name) for name in (b"a", b"b", b"c"))


def test_what_was_used_least_recently_goes_first() -> None:
    kept: Kept[str] = Kept(10)
    kept.keep(A, "a", 5)
    kept.keep(B, "b", 5)
    assert kept.find(A) == "a"
    kept.keep(C, "c", 5)
    assert [kept.find(cid) for cid in (A, B, C)] == ["a", None, "c"]


def test_what_is_kept_already_stays_as_it_is() -> None:
    kept: Kept[str] = Kept(10)
    kept.keep(A, "first", 4)
    kept.keep(A, "second", 4)
    assert kept.find(A) == "first"
    kept.keep(B, "b", 6)  # both fit: the weight was counted once
    assert kept.find(A) == "first"


def test_last_value_is_kept_whatever_it_weighs() -> None:
    kept: Kept[str] = Kept(10)
    kept.keep(A, "a", 1)
    kept.keep(B, "b", 99)
    assert (kept.find(A), kept.find(B)) == (None, "b")
