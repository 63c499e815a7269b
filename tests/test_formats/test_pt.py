"""PyTorch files of both forms: facts, verdicts, and what is refused."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.real_models import real_model
from tests.fakes.pt_files import (
    NO_HOOKS,
    OS_SYSTEM,
    called,
    imported,
    legacy,
    listed,
    pickled,
    row,
    storage,
    table,
    tensor,
    text,
    torch_zip,
    torchscript,
    whole,
    zipped,
)
from vision_o3.errors import LimitExceededError, UnsafeContentError, VisionO3Error
from vision_o3.formats import pt
from vision_o3.formats.limits import Limits
from vision_o3.formats.pt_imports import ALLOWED, TorchImports
from vision_o3.schemas.facts import NEW_FACTS

REPOSITORY = Path(__file__).parent.parent.parent
EXPORTERS = REPOSITORY / ".venv" / "exporters" / "bin" / "python"
"""An environment with PyTorch."""


def inspect(content: bytes) -> dict[str, Any]:
    facts = pt.inspect(io.BytesIO(content), len(content), Limits())
    NEW_FACTS.validate_python(facts)
    json.dumps(facts, allow_nan=False)
    return facts


def findings(content: bytes) -> list[str]:
    safety = inspect(content)["safety"]
    assert (safety["verdict"] == "unsafe") == bool(safety["findings"])
    found: list[str] = safety["findings"]
    return found


def names(content: bytes) -> list[str]:
    return [tensor["name"] for tensor in inspect(content)["tensors"]]


W = {"name": "w", "dtype": "float32", "shape": [2, 3]}
GOOD = {
    "zip": torch_zip(),
    "torchscript": torchscript(),
    "legacy": legacy(),
}


@pytest.mark.parametrize(
    ("kind", "container", "format_version", "byteorder"),
    [
        ("zip", "zip", 3, "little"),
        ("torchscript", "zip", 3, "little"),
        ("legacy", "legacy", 1001, "little"),
    ],
)
def test_facts_are_read(
    kind: str, container: str, format_version: int, byteorder: str
) -> None:
    facts = inspect(GOOD[kind])
    imports = facts.pop("imports")
    assert "torch._utils._rebuild_tensor_v2" in imports
    assert ("__torch__.Net" in imports) == (kind == "torchscript")
    assert facts == {
        "kind": "pt",
        "container": container,
        "torchscript": kind == "torchscript",
        "format_version": format_version,
        "byteorder": byteorder,
        "producer": None,
        "tensors": [W],
        "tensor_count": 1,
        "parameters": 6,
        "dtypes": {"float32": 1},
        "safety": {"verdict": "safe", "findings": []},
    }


def test_names_are_the_path_through_the_containers() -> None:
    value = table(
        state_dict=NO_HOOKS + b"(" + text("conv.weight") + tensor() + b"u",
        steps=listed(tensor(), row(b"N", tensor())),
        nested=b"}" + whole(7) + tensor() + b"s" + b"(K\1K\2t" + tensor() + b"s",
        big=b"}" + whole(2**70) + tensor() + b"s",
        chosen=called("builtins.set", listed(tensor())),
    )
    assert names(torch_zip(value)) == [
        "state_dict.conv.weight",
        *("steps.0", "steps.1.1", "nested.?", "nested.7", "big.?", "chosen.0"),
    ]
    assert names(torch_zip(tensor())) == [""]


def test_names_in_a_whole_module_are_those_of_its_state_dict() -> None:
    module = (
        imported("a.Net")
        + b")\x81"
        + table(
            training=b"\x88",
            _parameters=table(w=tensor()),
            _modules=table(
                conv=imported("a.Conv")
                + b")\x81"
                + table(_buffers=table(mean=tensor()))
                + b"b"
            ),
        )
        + b"b"
    )
    facts = inspect(torch_zip(module))
    assert [tensor["name"] for tensor in facts["tensors"]] == ["w", "conv.mean"]
    assert facts["safety"]["findings"] == ["a.Net", "a.Conv"]


def test_the_last_of_equal_keys_counts() -> None:
    value = b"}(" + (text("w") + tensor()) * 2 + b"u" + text("w") + b"Ns"
    assert names(torch_zip(value)) == []


def test_tied_weights_are_counted_once() -> None:
    value = table(a=tensor(), b=tensor(), c=tensor(shape=(6,), strides=(1,)))
    facts = inspect(torch_zip(value))
    assert facts["tensor_count"] == 3
    assert facts["parameters"] == 6 + 6


def test_long_lists_are_cut_and_counted() -> None:
    value = table(**{f"w{number}": tensor() for number in range(250)})
    facts = inspect(torch_zip(value))
    assert facts["tensor_count"] == 250
    assert facts["dtypes"] == {"float32": 250}
    assert [tensor["name"] for tensor in facts["tensors"]] == [
        f"w{number}" for number in range(200)
    ]


def test_deep_and_circular_values_are_named() -> None:
    circle = b"]q\0" + b"(h\0" + tensor() + b"e"
    assert names(torch_zip(circle)) == ["1"]
    deep = b"]" * 50_000 + tensor() + b"a" * 50_000
    (name,) = names(torch_zip(deep))
    assert name.startswith("0.0.0")


def test_huge_counts_stay_within_json() -> None:
    huge = [
        tensor(storage(str(n), 1), (2**62, 1), (0, 0), hooks=b"N") for n in range(4)
    ]
    content = torch_zip(listed(*huge), {f"data/{n}": bytes(4) for n in range(4)})
    assert inspect(content)["parameters"] == 2**63 - 1


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, 3),
        ({"version": b"10\n"}, 10),
        ({"version": b"x"}, None),
        ({"version": b"9" * 60}, None),
        ({"version": b"\xb2"}, None),
    ],
)
def test_format_version_is_a_number_or_unknown(
    members: dict[str, bytes], expected: int | None
) -> None:
    assert inspect(torch_zip(members=members))["format_version"] == expected


@pytest.mark.parametrize(
    ("version", "producer"),
    [
        (text("2.5.0\n"), "PyTorch Lightning 2.5.0"),
        (b"N", None),
    ],
)
def test_the_program_that_wrote_a_checkpoint_is_named(
    version: bytes, producer: str | None
) -> None:
    value = table(**{"pytorch-lightning_version": version, "w": tensor()})
    assert inspect(torch_zip(value))["producer"] == producer


def test_the_byte_order_is_told_where_it_is_known() -> None:
    big = torch_zip(members={"byteorder": b"big"})
    assert inspect(big)["byteorder"] == "big"
    old = zipped({"m.txt": b"", "data.pkl": pickled(b"}")})
    assert inspect(old)["byteorder"] is None
    swapped = legacy().replace(b"little_endian\x88", b"little_endian\x89")
    assert inspect(swapped)["byteorder"] == "big"
    untold = legacy().replace(b"little_endian\x88", b"little_endiam\x88")
    assert inspect(untold)["byteorder"] is None


def test_members_without_a_crc_are_read_as_pytorch_can_write_them() -> None:
    content = bytearray(torch_zip(OS_SYSTEM))
    at = 0
    for signature, crc_at in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        at = content.find(signature)
        while at >= 0:
            content[at + crc_at : at + crc_at + 4] = bytes(4)
            at = content.find(signature, at + 4)
    assert findings(bytes(content)) == ["os.system"]


def test_deflated_members_are_read() -> None:
    members = {"data.pkl": pickled(row(tensor(), OS_SYSTEM)), "data/0": bytes(24)}
    content = zipped(members, deflated=tuple(members))
    assert findings(content) == ["os.system"]


TAR = io.BytesIO()
with tarfile.open(fileobj=TAR, mode="w") as _archive:
    _archive.addfile(tarfile.TarInfo("a"))
HARMFUL_PICKLE = pickled(OS_SYSTEM)
IN_MEMBERS = {
    "by extension": ({"x.pkl": HARMFUL_PICKLE}, "os.system (in x.pkl)"),
    "by an extension in capitals": ({"x.PKL": HARMFUL_PICKLE}, "os.system (in x.PKL)"),
    "under another extension": ({"x.txt": HARMFUL_PICKLE}, "os.system (in x.txt)"),
    "without an extension": ({"x": HARMFUL_PICKLE}, "os.system (in x)"),
    "hidden": ({".data/.x": HARMFUL_PICKLE}, "os.system (in .data/.x)"),
    "under the name of a note": ({"version": HARMFUL_PICKLE},
                                 "os.system (in version)"),
    "as storage of another pickle": ({"other/0": HARMFUL_PICKLE},
                                     "os.system (in other/0)"),
    "as a storage's neighbour": ({"data/x": HARMFUL_PICKLE}, "os.system (in data/x)"),
    "protocol 0": ({"x.bin": b"cos\nsystem\n(S'true'\ntR."},
                   "os.system (in x.bin)"),
    "protocol 0, not called": ({"x.bin": b"cos\nsystem\n."}, "os.system (in x.bin)"),
    "protocol 0, broken after": ({"x.bin": b"cos\nsystem\n(S'true'\ntR\xff"},
                                 "os.system (in x.bin)"),
    "broken after": ({"x.bin": b"\x80\x04" + OS_SYSTEM + b"\xff"},
                     "os.system (in x.bin)"),
    "followed by bytes": ({"x.bin": pickled(b"N") + HARMFUL_PICKLE},
                          "bytes after the end of a pickle (in x.bin)"),
    "a zip": ({"x.bin": zipped({"y": b""})}, "an archive: x.bin"),
    "an empty zip": ({"x.bin": b"PK\x05\x06" + bytes(18)}, "an archive: x.bin"),
    "a 7z": ({"x.bin": b"7z\xbc\xaf\x27\x1c\0"}, "an archive: x.bin"),
    "a rar": ({"x.bin": b"Rar!\x1a\7"}, "an archive: x.bin"),
    "a tar": ({"x.bin": TAR.getvalue()}, "an archive: x.bin"),
    "a gzip": ({"x.bin": gzip.compress(HARMFUL_PICKLE)},
               "compressed content: x.bin"),
    "a program": ({"x.so": b"\x7fELF\2"}, "a program: x.so"),
    "a script": ({"x.sh": b"#!/bin/sh\n"}, "a program: x.sh"),
    "Python code": ({"x/__init__.py": b"import os\n"}, "Python code: x/__init__.py"),
}  # fmt: skip


@pytest.mark.parametrize("case", IN_MEMBERS)
def test_what_is_in_other_members_is_found(case: str) -> None:
    members, finding = IN_MEMBERS[case]
    assert findings(torch_zip(members=members)) == [finding]


def test_imports_of_other_members_are_listed() -> None:
    many = pickled(row(*(imported(f"a.b{number}") for number in range(300))))
    facts = inspect(torch_zip(members={"x.pkl": HARMFUL_PICKLE, "y.pkl": many}))
    assert "os.system" in facts["imports"]
    assert len(facts["imports"]) == 200
    assert len(facts["safety"]["findings"]) == 50


@pytest.mark.parametrize(
    "members",
    [
        {"data/1": HARMFUL_PICKLE},  # a storage, which nothing unpickles
        {"extra/labels.txt": b"cat\ndog\n"},
        {"extra/config.json": b'{"a": 1}'},
        {"extra/notes": b"come on\nin\nhere."},
        {"extra/notes": b"\x80\x02 is not a pickle"},
        {"x.pkl": pickled(table(a=b"N"))},
        {"x.bin": b"N."},
        {"empty": b""},
    ],
)
def test_harmless_members_are_no_finding(members: dict[str, bytes]) -> None:
    assert findings(torch_zip(members=members)) == []


@pytest.mark.parametrize(
    "code",
    [
        b'torch.save(x, "f")',
        b'torch . save(x, "f")',
        b'x = (torch # why not\n.save)(x, "f")',
        b'x = (torch\\\n.from_file)("f")',
        b'y = "#"; torch.save(x, "f")',
        b"y = '''\n\"#''';torch.save(x, 'f')",
        b'ops.aten.save(x, "f")',
        b'torch.ops.aten.save(x, "f")',
        b'(torch).save(x, "f")',
        b't = torch\nt.save(x, "f")',
        b'getattr(torch, "save")(x, "f")',
        b'o = ops\no.aten.save(x, "f")',
        b'torch.autograd.save(x, "f")',
        b'torch.autograd.autograd.from_file("f")',
        b'ops.image.write_file("f", x)',
        b'x = ops.torchvision.nms(a)\nops . image . write_file("f", x)',
        b'(ops).image.write_file("f", x)',
        b'x = ops.video_reader.read_video_from_file("f")',
        b'x = __torch__.torch.classes.torchvision.Video("f", "video")',
        b"x = __torch__.torch.classes\ny = x.torchvision",
        b"x = __torch__.torch\ny = x.classes.torchvision",
        b"x = __torch__\ny = x.torch.classes.torchvision",
    ],
)
def test_torchscript_that_reaches_files_is_found(code: bytes) -> None:
    (finding,) = findings(torchscript(code=code))
    assert finding.startswith("TorchScript that can reach files")
    assert finding.endswith("code/__torch__.py")


@pytest.mark.parametrize(
    "code",
    [
        b"save : List[int]\n_0 = torch.conv2d(x, self.save, )\nreturn _0",
        b'raise("call torch.save(x) first")',
        b"# torch.save(x)\nmytorch.save(x)",
        b"self.torch.save(x)",
        b"x = ops.torchvision.nms(x)\n",
        b"x = ops.prim.NumToTensor(torch.size(x, 0))\n",
        b"x = ops.quantized.conv2d(x, self.p, 1., 0)\n",
        b"p : __torch__.torch.classes.quantized.Conv2dPackedParamsBase\n",
        b"bn : __torch__.torchvision.ops.misc.FrozenBatchNorm2d\n",
        b"x = (self.ops.image).forward(x)\n",
        b"a : __torch__\t.Net\n",
        b"a : __torch__.torch.nn.modules.linear.Linear\n",
        b"torch.save_it(x)",
        b"  ops : __torch__.torch.nn.modules.linear.Linear\n  x = self.ops\n",
        b'x = """torch.save(',
        b'x = "\\"torch.save(',
        b"'" * 10_000 + b'\\"' * 10_000,
    ],
)
def test_other_torchscript_is_no_finding(code: bytes) -> None:
    assert findings(torchscript(code=code)) == []


def test_instructions_for_mobile_devices_are_read() -> None:
    operators = pickled(row(text("aten::save"), text("")))
    (finding,) = findings(torchscript(members={"bytecode.pkl": operators}))
    assert finding == "TorchScript that can reach files, by aten::save: bytecode.pkl"


@pytest.mark.parametrize(
    "name", ["image::write_file", "aten::from_file", "aten::save.out", "a.prim::x"]
)
def test_instructions_by_other_libraries_are_found(name: str) -> None:
    named = row(text("operators"), row(row(text("prim::If"), b"N"), row(text(name))))
    circle = b"]q\0h\0ah\0" + table(a=b"h\0", b=named) + b"a"
    for value in (
        named,
        circle,
        called("torch.jit._pickle.restore_type_tag", named, text("t")),
        called("__torch__.A", called("builtins.set", listed(named))),
    ):
        (finding,) = findings(torchscript(members={"bytecode.pkl": pickled(value)}))
        assert finding == f"TorchScript that can reach files, by {name}: bytecode.pkl"


def test_instructions_that_compute_are_no_finding() -> None:
    names = (
        "aten::add",
        "prim::If",
        "quantized::conv2d",
        "prepacked::conv2d_clamp_run",
    )
    value = pickled(row(*map(text, (*names, "__torch__.Net.forward", "a:b"))))
    assert findings(torchscript(members={"bytecode.pkl": value})) == []


def test_tensors_of_frozen_torchscript_are_listed() -> None:
    # Their storages have keys of their own.
    weights = row(tensor(), b"N", tensor(shape=(6,), strides=(1,)))
    members = {"constants.pkl": pickled(weights), "constants/0": bytes(24)}
    empty = imported("__torch__.Net") + b")\x81}b"
    frozen = inspect(torchscript(empty, members=members))
    assert frozen["tensors"] == [
        {"name": "constants.0", "dtype": "float32", "shape": [2, 3]},
        {"name": "constants.2", "dtype": "float32", "shape": [6]},
    ]
    assert frozen["parameters"] == 12
    both = inspect(torchscript(members=members))
    assert both["tensors"][0] == W
    assert (both["tensor_count"], both["parameters"]) == (3, 18)
    assert both["dtypes"] == {"float32": 3}


def test_pickles_of_torchscript_are_read() -> None:
    content = torchscript(
        members={
            "constants.pkl": pickled(row(tensor(), OS_SYSTEM)),
            "constants/0": bytes(24),
            "bytecode.pkl": pickled(row(tensor(), tensor(storage("1.storage")))),
            "constants/1.storage": b"PK\x03\x04".ljust(24, b"\0"),
            "code/__torch__.py.debug_pkl": pickled(imported("os.getcwd")),
        }
    )
    assert findings(content) == [
        *("os.system", "os.getcwd (in code/__torch__.py.debug_pkl)"),
    ]
    with pytest.raises(ValueError, match="storage 0 of its tensors"):
        inspect(torchscript(members={"constants.pkl": pickled(tensor())}))


def test_code_is_torchscript_only_where_pytorch_looks_for_it() -> None:
    found = findings(torchscript(members={"x.py": b"", "code/x.PY": b""}))
    assert found == ["Python code: x.py", "Python code: code/x.PY"]


LEGACY_WITH_ZIP = legacy(
    table(w=tensor(storage("0", 40), (40,), (1,))),
    {"0": (40, zipped({"y": b""})[-160:].rjust(160, b"\0"))},
)
LEGACY_WITH_ZIP_BEFORE = legacy(
    table(w=tensor(storage("0", 40), (40,), (1,))),
    {"0": (40, zipped({"y": b""})[-150:].rjust(159, b"\0") + b"x")},
)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (torch_zip(OS_SYSTEM), ["os.system"]),
        (torch_zip(members={"data.pkl": pickled(b"}") + b"N."}),
         ["bytes after the end of data.pkl"]),
        (torchscript(OS_SYSTEM), ["os.system"]),
        (legacy(OS_SYSTEM, {}), ["os.system"]),
        (legacy().replace(b"\x80\x02" + whole(1001), b"\x80\x02" + OS_SYSTEM + b"0"
                          + whole(1001)), ["os.system"]),
        (pickled(OS_SYSTEM + b"0N0")[:-1] + legacy()[2:], ["os.system"]),
        (legacy().replace(b"](X\1\0\0\x000e.", b"](X\1\0\0\x000e" + OS_SYSTEM + b"0."),
         ["os.system"]),
        (legacy().replace(b"\x80\x02}(X\r", b"\x80\x02" + OS_SYSTEM + b"0}(X\r"),
         ["os.system"]),
        (LEGACY_WITH_ZIP, ["a ZIP archive at its end"]),
        (LEGACY_WITH_ZIP_BEFORE, []),
    ],
)  # fmt: skip
def test_every_pickle_is_looked_at(content: bytes, found: list[str]) -> None:
    assert findings(content) == found


def tar_that_is_pickled() -> bytes:
    """A file of the older form that is a tar archive too."""
    member = tarfile.TarInfo("pickle")
    header = bytearray(member.tobuf())
    start = pickled(b"X\xf0\x01\0\0")[:-1]
    header[: len(start)] = start
    header[505:512] = b"0" + pickled(b"N")[:0] + bytes(6)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def case_twins() -> bytes:
    return torch_zip(members={"DATA.PKL": HARMFUL_PICKLE})


REFUSED = {
    "nothing": (b"", "begins as a ZIP archive or a pickle"),
    "text": (b"weights\n", "begins as a ZIP archive or a pickle"),
    "a bare pickle": (HARMFUL_PICKLE, "not as torch.save writes it"),
    "a pickle of another number": (pickled(whole(7)), "not as torch.save writes it"),
    "a bare pickle of protocol 0": (b"cos\nsystem\n.", "ZIP archive or a pickle"),
    "a tar archive": (TAR.getvalue(), "tar archive of PyTorch before"),
    "a tar archive that is pickled": (tar_that_is_pickled(), "tar archive"),
    "another protocol": (legacy(protocol=1002), "protocol 1001"),
    "a zip without a pickle": (zipped({"other": b""}), "no member data.pkl in a"),
    "a zip without a folder": (zipped({"data.pkl": b""}, folder=""), "no member"),
    "a zip of two folders": (
        zipped({"data.pkl": pickled(b"N"), "../n/data.pkl2": b""}, folder="m")
        .replace(b"m/../n/data.pkl2", b"n/0123456789abcd"), "not in one folder"),
    "names that differ in case": (case_twins(), "case of letters only"),
    "a broken pickle": (torch_zip(members={"data.pkl": b"\x80\x02N"}), "cut short"),
    "a payload, then broken": (
        torch_zip(members={"data.pkl": b"\x80\x02" + OS_SYSTEM + b"\xff"}),
        "unknown instruction"),
    "an empty pickle": (torch_zip(members={"data.pkl": b""}), "cut short"),
    "another pickle that is broken": (
        torch_zip(members={"x.pkl": b"weights"}), r"\(x.pkl\)"),
    "a storage missing": (torch_zip(tensor(storage("7"))), r"storage 7 .* is missing"),
    "a storage too small": (torch_zip(members={"data/0": bytes(23)}),
                            "has 23 bytes, but its tensors need 24"),
    "a tensor outside": (torch_zip(tensor(offset=1)), "reaches beyond"),
    "no byte order": (torch_zip(members={"byteorder": b"middle"}), "neither little"),
    "a wrong CRC": (GOOD["zip"].replace(bytes(24), b"\1" * 24, 1), "CRC"),
    "a wrong CRC of the pickle": (
        GOOD["zip"].replace(b"X\1\0\0\0w", b"X\1\0\0\0v"),
        "CRC",
    ),
    "legacy without a storage": (legacy(None, {}), "storage 0 is missing"),
    "legacy with another storage": (
        legacy(None, {"0": (6, bytes(24)), "1": (0, b"")}), "that no tensor needs"),
    "legacy with a storage of another size": (
        legacy(None, {"0": (5, bytes(24))}), "has 5 elements, but its tensors need 6"),
    "legacy with keys that are none": (
        legacy().replace(b"](X\1\0\0\x000e.", b"](K\0K\0K\0e."),
        "that no tensor needs"),
    "legacy with no list of keys": (
        legacy().replace(b"](X\1\0\0\x000e.", b"N."), "is missing"),
    "legacy cut short": (GOOD["legacy"][:-1], "cut short"),
    "legacy cut in a count": (GOOD["legacy"][:-26], "cut short"),
    "legacy cut in a pickle": (GOOD["legacy"][:60], "cut short"),
    "legacy with more": (GOOD["legacy"] + b"x", "bytes after its last storage"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_good_file_is_refused(case: str) -> None:
    content, reason = REFUSED[case]
    with pytest.raises(ValueError, match=reason):
        inspect(content)


@pytest.mark.parametrize("kind", GOOD)
def test_every_truncation_is_refused(kind: str) -> None:
    content = GOOD[kind]
    for size in range(len(content)):
        with pytest.raises(ValueError, match=r"cut short|PK|begins"):
            inspect(content[:size])


def test_pickles_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pt, "LARGEST_PICKLE", 1000)
    padding = text("x" * 1000) + b"0"
    harmless = pickled(padding + b"N")
    for content in (
        torch_zip(members={"data.pkl": harmless}),
        torch_zip(members={"x.pkl": harmless}),
        torch_zip(members={"x.bin": harmless}),
        torchscript(code=b" " * 1001),
        legacy(padding + b"N", {}),
    ):
        with pytest.raises(LimitExceededError, match="1000 bytes"):
            inspect(content)
    inspect(torch_zip(members={"x.bin": b"x" * 1001}))
    with pytest.raises(ValueError, match="unknown instruction"):
        inspect(legacy(b"\xff", {}) + bytes(1000))


def test_paths_that_lead_outside_are_unsafe() -> None:
    with pytest.raises(UnsafeContentError):
        inspect(torch_zip(members={"../../x": b""}))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file with a few bytes changed, cut, or made longer."""
    content = bytearray(draw(st.sampled_from(sorted(GOOD.values()))))
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.integers(0, len(content)))
    return bytes(content[:cut]) + draw(st.binary(max_size=30))


PICKLE = pickled(table(w=tensor()))


@st.composite
def damaged_within(draw: st.DrawFn) -> bytes:
    """A file whose pickle is damaged, and its container not."""
    content = bytearray(PICKLE)
    for _ in range(draw(st.integers(1, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    members = {"data.pkl": bytes(content), "x": draw(st.binary(max_size=99))}
    if draw(st.booleans()):
        return torchscript(members=members)
    return torch_zip(members=members)


@given(st.binary(max_size=600) | damaged() | damaged_within())
def test_any_bytes_are_inspected_or_refused(content: bytes) -> None:
    with contextlib.suppress(ValueError, VisionO3Error):
        inspect(content)


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_any_one_byte_changed_is_noticed_or_harmless(kind: str) -> None:
    content = GOOD[kind]
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 0x5A
        with contextlib.suppress(ValueError, VisionO3Error):
            inspect(bytes(changed))


@pytest.mark.integration
def test_a_real_file_is_read() -> None:
    try:
        content = real_model("pt").read_bytes()
    except OSError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"A package with a real model cannot be had: {error}")
    facts = inspect(content)
    assert facts["container"] == "legacy"
    assert facts["parameters"] == 6632
    assert facts["tensor_count"] == 13
    assert facts["tensors"][0] == {
        "name": "conv1.weight",
        "dtype": "float32",
        "shape": [10, 3, 3, 3],
    }
    assert facts["safety"]["verdict"] == "safe"
    for size in (len(content) - 1, len(content) // 2, 100):
        with pytest.raises(ValueError, match="cut short"):
            inspect(content[:size])


WRITER = REPOSITORY / "tests" / "fakes" / "pt_exports.py"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Files that PyTorch writes, and what it says is in them."""
    if not EXPORTERS.exists():
        assert os.environ.get("CI") != "true", f"{EXPORTERS} is missing"
        pytest.skip(f"PyTorch is not installed in {EXPORTERS.parent.parent}")
    folder = tmp_path_factory.mktemp("exported")
    ran = subprocess.run(
        [EXPORTERS, "-W", "ignore", WRITER, folder],
        check=True,
        capture_output=True,
        text=True,
    )
    return folder, json.loads(ran.stdout)


EXPORTED = {
    "state_dict.pt": [],
    "state_dict_legacy.pt": [],
    "state_dict_no_crc.pt": [],
    "types.pt": [],
    "types_protocol_4.pt": [],
    "types_legacy.pt": [],
    "checkpoint.pt": [],
    "traced.pt": [],
    "scripted.pt": [],
    "mobile.pt": [],
    "scripted_saves.pt": [
        "TorchScript that can reach files, by torch.save: code/__torch__.py",
    ],
    "module.pt": [
        "__main__.Net",
        "torch.nn.modules.conv.Conv2d",
        "torch.nn.modules.batchnorm.BatchNorm2d",
        "torch.nn.modules.linear.Linear",
    ],
    "module_legacy.pt": [
        "__main__.Net",
        "torch.nn.modules.conv.Conv2d",
        "torch.nn.modules.batchnorm.BatchNorm2d",
        "torch.nn.modules.linear.Linear",
    ],
}


@pytest.mark.integration
@pytest.mark.parametrize("name", EXPORTED)
def test_facts_are_what_pytorch_says(
    exported: tuple[Path, dict[str, Any]], name: str
) -> None:
    folder, told = exported
    said = told["files"]
    assert said.keys() == EXPORTED.keys()
    facts = inspect((folder / name).read_bytes())
    listed_tensors = {
        found["name"]: [found["dtype"], found["shape"]] for found in facts["tensors"]
    }
    # What was a constant while it was traced is none of the module's weights.
    constants = {"constants.0": ["float32", [2]]} if name == "traced.pt" else {}
    assert listed_tensors == said[name]["tensors"] | constants
    assert facts["tensor_count"] == len(listed_tensors)
    assert facts["parameters"] == said[name]["parameters"] + 2 * len(constants)
    assert facts["torchscript"] == said[name]["torchscript"]
    assert facts["safety"]["findings"] == EXPORTED[name]


@pytest.mark.integration
def test_what_pytorch_unpickles_as_weights_is_safe_here(
    exported: tuple[Path, dict[str, Any]],
) -> None:
    folder, told = exported
    names = [name for name, said in told["files"].items() if said["weights_only"]]
    assert len(names) >= 6
    for name in names:
        facts = inspect((folder / name).read_bytes())
        assert facts["safety"]["verdict"] == "safe"


@pytest.mark.integration
def test_what_is_allowed_is_what_pytorch_allows_but_where_said(
    exported: tuple[Path, dict[str, Any]],
) -> None:
    _, told = exported
    imports = TorchImports(torchscript=False)
    left_out = {
        path
        for path in told["allowed"]
        if not imports.allows(*path.rpartition(".")[::2])
    }
    assert left_out == {
        "torch._utils._rebuild_device_tensor_from_numpy",
        "torch._utils._rebuild_nested_tensor",
        "torch._utils._rebuild_wrapper_subclass",
    }
    allowed = {f"{module}.{name}" for module, name in ALLOWED}
    assert allowed - {*told["allowed"]} == {
        "torch.tensor._rebuild_from_type_v2",
        *(f"__builtin__.{name}" for name in ("bytearray", "bytes", "complex", "set")),
        "builtins.bytes",
    }


@pytest.mark.integration
def test_zip_archives_that_pytorch_writes_are_read_by_zipfile_alike(
    exported: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = exported
    with zipfile.ZipFile(folder / "state_dict.pt") as archive:
        (pickle_path,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
        content = {
            name.partition("/")[2]: archive.read(name) for name in archive.namelist()
        }
    assert pickle_path.count("/") == 1
    assert inspect(zipped(content)) == inspect((folder / "state_dict.pt").read_bytes())
