from __future__ import annotations

import contextlib
import json
from typing import Any, Dict, List, Optional

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.strategies.content import cids
from vision_o3.content.cid import CID, DAG_PB, RAW
from vision_o3.content.dag import cid_of_bytes
from vision_o3.content.manifest import (
    LONGEST_PATH,
    Difference,
    FileEntry,
    Manifest,
    Renamed,
    compare,
    encode_entry,
    encode_manifest,
    entries_at,
    find_entry,
    parse_path,
    sort_key,
)
from vision_o3.errors import (
    DigestMismatchError,
    InvalidPathError,
    MalformedBlockError,
)

JPEG = "image/jpeg"


def file(path: str, content: bytes = b"abc", media_type: str = JPEG) -> FileEntry:
    return FileEntry(path, len(content), cid_of_bytes(content), media_type)


def encoded(*entries: FileEntry) -> bytes:
    return b"".join(encode_manifest(sorted(entries, key=sort_key)))


def document(**changes: Any) -> Dict[str, Any]:
    """Return an entry as JSON, with some values changed; ``None`` leaves one out."""
    values: Dict[str, Any] = {
        "cid": str(cid_of_bytes(b"abc")),
        "media_type": JPEG,
        "path": "a.jpg",
        "size": 3,
        **changes,
    }
    return {name: value for name, value in values.items() if value is not None}


def canonical(files: List[Any], **changes: Any) -> bytes:
    """Write a manifest as the format says, by another way than the module's own."""
    values = {"files": files, "manifest_format": 1, **changes}
    return json.dumps(
        values, ensure_ascii=False, separators=(",", ":"), sort_keys=True
    ).encode("utf-8", "surrogatepass")


# Paths


@pytest.mark.parametrize(
    "path",
    [
        "a",
        "images/train/0001.jpg",
        ".hidden/.gitignore",
        "a b/c d.txt",
        "größe/日本語/😀.png",
        'quo"ted.txt',
        "a..b/..c/d..",
        "with:colon/C:",
        "x" * 255,
        "/".join(["x" * 255] * 16),
        "e\u0301",
        "\u202etxt.exe",
    ],
)
def test_safe_paths_are_accepted(path: str) -> None:
    assert parse_path(path) == path
    manifest = Manifest(encoded(file(path)))
    assert manifest.files == (file(path),)
    assert find_entry(manifest.content, path) == (0, file(path))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "0 bytes"),
        ("/etc/passwd", "not relative"),
        ("//host/share", "not relative"),
        ("C:/x", "not relative"),
        ("c:x", "not relative"),
        ("a\\..\\b", "backslash"),
        ("..", "'..'"),
        ("../x", "'..'"),
        ("a/../b", "'..'"),
        ("a/..", "'..'"),
        (".", "'.'"),
        ("./a", "'.'"),
        ("a/./b", "'.'"),
        ("a//b", "''"),
        ("a/", "''"),
        ("a/.. /b", "'.. '"),
        ("a/ /b", "' '"),
        (".../a", "'...'"),
        ("a\0b", "control"),
        ("a\nb", "control"),
        ("a\x7fb", "control"),
        ("a\x85b", "control"),
        ("a\u2028b", "control"),
        ("a\udc80b", "Unicode"),
        ("x" * 256, "255 bytes"),
        ("é" * 128, "255 bytes"),
        ("a/" * (LONGEST_PATH // 2) + "b", "4097 bytes"),
    ],
)
def test_unsafe_paths_are_refused(path: str, reason: str) -> None:
    with pytest.raises(InvalidPathError, match=reason) as caught:
        parse_path(path)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000
    with pytest.raises(MalformedBlockError):
        Manifest(canonical([document(path=path)]))


@given(st.text(max_size=40))
def test_an_accepted_path_stays_below_its_directory(text: str) -> None:
    try:
        path = parse_path(text)
    except InvalidPathError:
        return
    depth = 0
    for part in path.replace("\\", "/").split("/"):
        depth += -1 if part.rstrip(" .") == "" else 1
        assert depth > 0


# Canonical bytes


def test_bytes_are_as_the_format_says() -> None:
    entries = [file("b.jpg"), file('a"ä.txt', b"x" * 2_000_000, "text/plain")]
    found = encoded(*entries)
    assert found == canonical(
        [
            document(
                path='a"ä.txt',
                size=2_000_000,
                cid=str(cid_of_bytes(b"x" * 2_000_000)),
                media_type="text/plain",
            ),
            document(path="b.jpg"),
        ]
    )
    assert Manifest(found, cid_of_bytes(found)).files == (entries[1], entries[0])


def test_an_archive_without_files_has_a_manifest() -> None:
    manifest = Manifest(encoded())
    assert manifest.content == b'{"files":[],"manifest_format":1}'
    assert manifest.files == ()
    assert manifest.find("a") is None


def test_entries_must_be_sorted_and_different() -> None:
    for paths in ("ba", "aa"):
        with pytest.raises(ValueError, match="given twice, or is not sorted"):
            list(encode_manifest([file(path) for path in paths]))


def test_sorted_by_bytes_and_not_by_letters() -> None:
    paths = ["Z", "a-b", "a/b", "ab", "é", "\uffff", "😀"]
    files = Manifest(encoded(*(file(path) for path in reversed(paths)))).files
    assert [each.path for each in files] == paths


def _is_path(text: str) -> bool:
    try:
        return bool(parse_path(text))
    except InvalidPathError:
        return False


entries = st.builds(
    FileEntry,
    st.text(min_size=1, max_size=30).filter(_is_path),
    st.integers(0, 2**63 - 1),
    cids,
    st.sampled_from([JPEG, "application/vnd.x+json"]),
)


@given(st.lists(entries, max_size=8, unique_by=lambda entry: entry.path))
def test_round_trip(files: List[FileEntry]) -> None:
    content = encoded(*files)
    manifest = Manifest(content)
    assert manifest.files == tuple(sorted(files, key=sort_key))
    assert content == canonical(json.loads(content)["files"])
    for number, entry in enumerate(manifest.files):
        assert manifest.position(entry.path) == number
        assert manifest.find(entry.path) == entry
        assert find_entry(content, entry.path) == (number, entry)
        assert encode_entry(entry) in content


GOOD = encoded(
    file("a.jpg"), file('b"c/ä.txt', b"\0" * (1 << 20) + b"1"), file("d", b"")
)


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=3))
def test_any_changed_bytes_are_refused_or_another_canonical_list(
    at: int, instead: bytes
) -> None:
    changed = GOOD[:at] + instead + GOOD[at + 1 :]
    try:
        manifest = Manifest(changed)
    except MalformedBlockError:
        return
    assert b"".join(encode_manifest(manifest.files)) == changed
    assert canonical(json.loads(changed)["files"]) == changed


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_any_change_is_seen_when_the_cid_is_known(at: int, change: int) -> None:
    changed = bytearray(GOOD)
    changed[at] ^= change
    with pytest.raises(DigestMismatchError):
        Manifest(bytes(changed), cid_of_bytes(GOOD))


@given(st.binary(max_size=200))
@example(b'{"files":[],"manifest_format":1}')
@example(b'{"files":[{"cid":"')
@example(b'{"files":[],"files":[],"manifest_format":1}')
def test_any_bytes_are_a_manifest_or_malformed(content: bytes) -> None:
    with contextlib.suppress(MalformedBlockError):
        assert encoded(*Manifest(content).files) == content


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "../etc/passwd"},
        {"path": "a\u2028"},
        {"path": 5},
        {"path": None},
        {"path": "\ud800"},
        {"size": -1},
        {"size": 2**63},
        {"size": 10**30},
        {"size": 1.5},
        {"size": 1e3},
        {"size": True},
        {"size": "3"},
        {"size": None},
        {"cid": "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPBdG"},
        {"cid": "bafkrei" + "a" * 51 + "b"},
        {"cid": "bafkrei" + "z" * 52},
        {"cid": str(cid_of_bytes(b"abc")).upper()},
        {"cid": str(cid_of_bytes(b"abc"))[:-1]},
        {"cid": 1},
        {"cid": None},
        {"media_type": "image"},
        {"media_type": "Image/PNG"},
        {"media_type": "a/" + "b" * 128},
        {"media_type": "text/plain; charset=utf-8"},
        {"media_type": None},
        {"more": 1},
    ],
)
def test_an_entry_that_is_not_acceptable(changes: Dict[str, Any]) -> None:
    content = canonical([document(**changes)])
    with pytest.raises(MalformedBlockError, match="Not a manifest"):
        Manifest(content)


ENTRY = canonical([document()])[len(b'{"files":[') : -len(b'],"manifest_format":1}')]
SECOND = ENTRY.replace(b"a.jpg", b"b.jpg")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"\x80" * 50,
        b"[" * 100_000,
        b'{"files":[],"manifest_format":2}',
        b'{"files":[],"manifest_format":1} ',
        b' {"files":[],"manifest_format":1}',
        b'\xef\xbb\xbf{"files":[],"manifest_format":1}',
        b'{"files": [],"manifest_format":1}',
        b'{"manifest_format":1,"files":[]}',
        b'{"files":[],"manifest_format":1,"more":1}',
        b'{"files":[1],"manifest_format":1}',
        b'{"files":[,],"manifest_format":1}',
        b'{"files":[' + ENTRY + b',],"manifest_format":1}',
        b'{"files":[,' + ENTRY + b'],"manifest_format":1}',
        b'{"files":[' + ENTRY + SECOND + b'],"manifest_format":1}',
        b'{"files":[' + ENTRY + b" ," + SECOND + b'],"manifest_format":1}',
        b'{"files":[' + ENTRY + b"," + ENTRY + b'],"manifest_format":1}',
        b'{"files":[' + SECOND + b"," + ENTRY + b'],"manifest_format":1}',
        b'{"files":[' + ENTRY.replace(b":3", b": 3") + b'],"manifest_format":1}',
        b'{"files":[' + ENTRY.replace(b":3", b":03") + b'],"manifest_format":1}',
        b'{"files":[' + ENTRY.replace(b":3", b":-0") + b'],"manifest_format":1}',
        b'{"files":[' + ENTRY.replace(b"a.", b"\\u0061.") + b'],"manifest_format":1}',
        b'{"files":[' + ENTRY.replace(b"a.", b"\\/a.") + b'],"manifest_format":1}',
        b'{"files":[' + ENTRY.replace(b"a.", b"\xc0\xaf.") + b'],"manifest_format":1}',
        b'{"files":[' + ENTRY.replace(b"a.", b"a\t.") + b'],"manifest_format":1}',
    ],
)
def test_what_is_no_canonical_manifest(content: bytes) -> None:
    with pytest.raises(MalformedBlockError, match="Not a manifest"):
        Manifest(content)


def test_the_second_entry_is_read_as_strictly() -> None:
    content = b'{"files":[' + ENTRY + b"," + SECOND + b'],"manifest_format":1}'
    assert [each.path for each in Manifest(content).files] == ["a.jpg", "b.jpg"]


def test_a_long_hostile_text_costs_little() -> None:
    for text in (b'\\"', b"a", b'{"cid":"', b'{"cid":"b' + b"a" * 58):
        content = b'{"files":[' + text * 100_000 + b'],"manifest_format":1}'
        with pytest.raises(MalformedBlockError):
            Manifest(content)
        start = ENTRY.replace(b"a.jpg", text * 100_000)
        with pytest.raises(MalformedBlockError):
            Manifest(b'{"files":[' + start + b'],"manifest_format":1}')


@pytest.mark.parametrize("codec", [RAW, DAG_PB])
@pytest.mark.parametrize("digest", [b"\0" * 32, b"\xff" * 32, bytes(range(32))])
def test_cids_are_read_as_by_their_own_parser(codec: int, digest: bytes) -> None:
    cid = CID(codec, digest)
    (entry,) = Manifest(canonical([document(cid=str(cid))])).files
    assert entry.cid == cid == CID.parse(str(cid))


def test_wrong_bytes_are_named() -> None:
    expected = cid_of_bytes(b"other")
    with pytest.raises(DigestMismatchError) as caught:
        Manifest(GOOD, expected)
    assert caught.value.values == {
        "expected": str(expected),
        "actual": str(cid_of_bytes(GOOD)),
    }
    assert Manifest(GOOD, cid_of_bytes(GOOD)).content == GOOD


# One entry


@pytest.mark.parametrize("path", ["x", "a", "jpg", "a.jpg2", ",", '"', "b"])
def test_finds_no_entry_of_another_path(path: str) -> None:
    assert find_entry(GOOD, path) is None


def test_text_in_a_path_is_not_taken_for_an_entry() -> None:
    trap = '{"cid":"bafk","path":"z","size":1}'
    content = encoded(file("a"), file(trap), file("zz"), file('{"cid":"'))
    assert find_entry(content, "z") is None
    places = {each.path: place for place, each in enumerate(Manifest(content).files)}
    assert find_entry(content, "zz") == (places["zz"], file("zz"))
    assert find_entry(content, trap) == (places[trap], file(trap))


@pytest.mark.parametrize(
    "content",
    [
        b',"path":"a.jpg","size":',
        b'{"cid":"x","path":"a.jpg","size":3}',
        ENTRY[:-1],
        ENTRY.replace(b":3", b":" + b"9" * 19),
        b'{"cid":"'
        + ENTRY[8:].replace(b"a.jpg", b"b.jpg")
        + b',"path":"a.jpg","size":',
    ],
)
def test_finds_no_entry_in_what_is_none(content: bytes) -> None:
    with pytest.raises(MalformedBlockError):
        find_entry(content, "a.jpg")


@given(st.binary(max_size=60), st.integers(0, len(ENTRY)))
def test_any_bytes_have_an_entry_or_none_or_are_malformed(junk: bytes, at: int) -> None:
    found: Optional[Any] = None
    try:
        found = find_entry(ENTRY[:at] + junk + ENTRY[at:], "a.jpg")
    except MalformedBlockError:
        return
    assert found is None or found[1].path == "a.jpg"


# Comparing


def difference(before: List[FileEntry], after: List[FileEntry]) -> Difference:
    return compare(Manifest(encoded(*before)), Manifest(encoded(*after)))


def test_nothing_changed() -> None:
    files = [file("a"), file("b")]
    assert difference(files, files) == Difference([], [], [], [], 2)


def test_every_kind_of_change() -> None:
    before = [
        file("same", b"0"),
        file("changed", b"1"),
        file("old/name", b"2"),
        file("gone", b"3"),
    ]
    after = [
        file("same", b"0"),
        file("changed", b"one"),
        file("new/name", b"2"),
        file("came", b"4"),
    ]
    assert difference(before, after) == Difference(
        added=[file("came", b"4")],
        removed=[file("gone", b"3")],
        changed=[Renamed(file("changed", b"1"), file("changed", b"one"))],
        renamed=[Renamed(file("old/name", b"2"), file("new/name", b"2"))],
        unchanged=1,
    )


def test_files_of_one_content_are_paired_in_order() -> None:
    before = [file("a1"), file("a2"), file("a3")]
    after = [file("b1"), file("b2")]
    found = difference(before, after)
    assert found.renamed == [
        Renamed(file("a1"), file("b1")),
        Renamed(file("a2"), file("b2")),
    ]
    assert found.removed == [file("a3")]


def test_a_copy_is_added_and_not_renamed() -> None:
    found = difference([file("a")], [file("a"), file("b")])
    assert found == Difference([file("b")], [], [], [], 1)


def test_two_files_that_changed_places_are_changed() -> None:
    found = difference(
        [file("a", b"1"), file("b", b"2")], [file("a", b"2"), file("b", b"1")]
    )
    assert [pair.before.path for pair in found.changed] == ["a", "b"]
    assert (found.added, found.removed, found.renamed) == ([], [], [])


manifests = st.dictionaries(
    st.sampled_from("abcdefgh"), st.sampled_from([b"1", b"2", b"3", b"4"]), max_size=8
)


@given(manifests, manifests)
def test_a_difference_turns_one_into_the_other(
    before: Dict[str, bytes], after: Dict[str, bytes]
) -> None:
    old = [file(path, content) for path, content in before.items()]
    new = [file(path, content) for path, content in after.items()]
    found = difference(old, new)
    paths = {entry.path: entry for entry in old}
    for entry in found.removed:
        assert paths.pop(entry.path) == entry
    for pair in (*found.changed, *found.renamed):
        assert paths.pop(pair.before.path) == pair.before
    assert len(paths) == found.unchanged
    for entry in (*found.added, *(p.after for p in (*found.changed, *found.renamed))):
        assert entry.path not in paths
        paths[entry.path] = entry
    assert paths == {entry.path: entry for entry in new}
    assert all(pair.before.cid == pair.after.cid for pair in found.renamed)
    assert not {e.cid for e in found.added} & {e.cid for e in found.removed}
    for listed in (found.added, found.removed):
        assert listed == sorted(listed, key=sort_key)


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("count", range(5))
def test_some_entries_are_read_without_the_rest(start: int, count: int) -> None:
    entries = [file(name) for name in ("a", 'b"{"cid":"', "c/d")]
    content = b"".join(encode_manifest(entries))
    expected = (3, entries[start : start + count])
    assert entries_at(content, start, count) == expected


def test_some_entries_that_are_none_are_refused() -> None:
    content = b"".join(encode_manifest([file("a"), file("b")]))
    with pytest.raises(MalformedBlockError, match="no canonical entry"):
        entries_at(content.replace(b"size", b"sice"), 1, 1)
