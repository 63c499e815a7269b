"""The symbolic machine: what it finds, what it refuses, and that it misses nothing."""

from __future__ import annotations

import io
import pickle
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.pt_files import (
    NO_HOOKS,
    OS_SYSTEM,
    called,
    imported,
    listed,
    pickled,
    raw,
    row,
    storage,
    table,
    tensor,
    text,
    whole,
)
from vision_o3.errors import LimitExceededError
from vision_o3.formats import pickles, pt_imports
from vision_o3.formats.pickle_values import Import, Items, Made, Members, Report
from vision_o3.formats.pickles import looks_pickled, scan
from vision_o3.formats.pt_imports import TorchImports
from vision_o3.formats.pt_tensors import Known, Tensor


def scanned(content: bytes, *, torchscript: bool = False) -> tuple[object, Report]:
    report = Report()
    value, end = scan(content, TorchImports(torchscript=torchscript), report)
    assert end == len(content)
    return value, report


def findings(content: bytes, *, torchscript: bool = False) -> list[str]:
    _, report = scanned(content, torchscript=torchscript)
    assert report.unsafe == bool(report.findings)
    return list(report.findings)


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def stack_global(module: bytes, name: bytes) -> bytes:
    return module + name + b"\x93"


ORDERED = imported("collections.OrderedDict")
REBUILD = imported("torch._utils._rebuild_tensor_v2")

HARMFUL = {
    "GLOBAL": (pickled(OS_SYSTEM), "os.system"),
    "GLOBAL that is not called": (pickled(imported("os.system")), "os.system"),
    "GLOBAL that is popped": (pickled(imported("os.system") + b"0N"), "os.system"),
    "protocol 0 without a header": (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
    "INST": (pickled(b"(" + text("true") + b"ios\nsystem\n"), "os.system"),
    "OBJ": (pickled(b"(" + imported("os.system") + text("true") + b"o"), "os.system"),
    "NEWOBJ": (pickled(imported("subprocess.Popen") + row(text("true")) + b"\x81"),
               "subprocess.Popen"),
    "NEWOBJ_EX": (pickled(imported("subprocess.Popen") + b")" + table(args=text("true"))
                          + b"\x92", 4), "subprocess.Popen"),
    "STACK_GLOBAL": (pickled(stack_global(short("os"), short("system")), 4),
                     "os.system"),
    "STACK_GLOBAL from the memo": (
        pickled(short("system") + b"\x940" + short("os") + b"\x940h\x01h\x00\x93", 4),
        "os.system"),
    "STACK_GLOBAL of duplicates": (pickled(short("code") + b"2\x93", 4), "code.code"),
    "STACK_GLOBAL through LONG_BINPUT": (
        pickled(short("os") + b"r\xff\0\0\x000j\xff\0\0\0" + short("system") + b"\x93",
                4), "os.system"),
    "STACK_GLOBAL after decoys": (
        pickled(short("os") + short("builtins") + b"0" + short("system") + short("len")
                + b"0\x93", 4), "os.system"),
    "STACK_GLOBAL in a frame": (
        b"\x80\x04\x95" + struct.pack("<Q", 14) + short("os") + short("system")
        + b"\x93.", "os.system"),
    "STACK_GLOBAL of Python 2's strings": (
        pickled(b"U\x02osU\x06system\x93", 4), "os.system"),
    "STACK_GLOBAL of text of protocol 0": (
        pickled(b"Vos\nVs\\u0079stem\n\x93", 4), "os.system"),
    "STACK_GLOBAL of escapes": (
        pickled(b"S'o\\x73'\nS'system'\n\x93", 4), "an import whose name is computed"),
    "STACK_GLOBAL of a call": (
        pickled(called("builtins.str", text("os")) + short("system") + b"\x93", 4),
        "an import whose name is computed"),
    "STACK_GLOBAL of bytes": (
        pickled(raw(b"os") + short("system") + b"\x93", 4),
        "an import whose name is computed"),
    "STACK_GLOBAL with a dotted name": (
        pickled(stack_global(short("torch"), short("serialization.os.system")), 4),
        "torch.serialization.os.system"),
    "an allowed module's other name": (
        pickled(stack_global(short("collections"), short("abc.sys.modules")), 4),
        "collections.abc.sys.modules"),
    "EXT1": (pickled(b"\x82\x01"), "the extension 1 of copyreg"),
    "EXT2": (pickled(b"\x83\x01\x01"), "the extension 257 of copyreg"),
    "EXT4": (pickled(b"\x84\x01\0\0\0"), "the extension 1 of copyreg"),
    "builtins.eval": (pickled(called("builtins.eval", text("1"))), "builtins.eval"),
    "__builtin__.eval": (pickled(called("__builtin__.eval", text("1"))),
                         "__builtin__.eval"),
    "builtins.exec": (pickled(called("builtins.exec", text("1"))), "builtins.exec"),
    "builtins.getattr": (pickled(called("builtins.getattr", NO_HOOKS, text("pop"))),
                         "builtins.getattr"),
    "what getattr returns": (
        pickled(called("builtins.getattr", NO_HOOKS, text("pop")) + b")R"),
        "a call of what builtins.getattr made"),
    "operator.attrgetter": (pickled(called("operator.attrgetter", text("system"))),
                            "operator.attrgetter"),
    "posix.system": (pickled(called("posix.system", text("true"))), "posix.system"),
    "nt.system": (pickled(called("nt.system", text("true"))), "nt.system"),
    "pip.main": (pickled(called("pip.main", listed(text("install")))), "pip.main"),
    "runpy": (pickled(called("runpy._run_code", text("1"))), "runpy._run_code"),
    "importlib": (pickled(called("importlib.import_module", text("os"))),
                  "importlib.import_module"),
    "a submodule of asyncio": (
        pickled(called("asyncio.unix_events._UnixSubprocessTransport._start")),
        "asyncio.unix_events._UnixSubprocessTransport._start"),
    "idlelib": (pickled(called("idlelib.run.Executive.runcode")),
                "idlelib.run.Executive.runcode"),
    "lib2to3": (pickled(called("lib2to3.pgen2.grammar.Grammar.loads", raw(b"x"))),
                "lib2to3.pgen2.grammar.Grammar.loads"),
    "torch.hub.load": (pickled(called("torch.hub.load", text("a/b"))),
                       "torch.hub.load"),
    "torch.load": (pickled(called("torch.load", text("x"))), "torch.load"),
    "torch._load_from_bytes": (
        pickled(called("torch.storage._load_from_bytes", raw(pickled(OS_SYSTEM)))),
        "torch.storage._load_from_bytes"),
    "torch's own os": (pickled(called("torch.serialization.os.system", text("true"))),
                       "torch.serialization.os.system"),
    "torch.collect_env": (pickled(called("torch.utils.collect_env.run", text("true"))),
                          "torch.utils.collect_env.run"),
    "torch.jit": (pickled(called("torch.jit.unsupported_tensor_ops.execWrapper")),
                  "torch.jit.unsupported_tensor_ops.execWrapper"),
    "torch._utils": (pickled(called("torch._utils._import_dotted_name", text("os"))),
                     "torch._utils._import_dotted_name"),
    "numpy": (pickled(called("numpy.testing._private.utils.runstring", text("1"))),
              "numpy.testing._private.utils.runstring"),
    "numpy's builtins": (
        pickled(stack_global(short("numpy"), short("__builtins__")), 4),
        "numpy.__builtins__"),
    "a user's class": (pickled(imported("models.yolo.Model") + b")\x81}b"),
                       "models.yolo.Model"),
    "TorchScript's class elsewhere": (pickled(imported("__torch__.Net")),
                                      "__torch__.Net"),
    "a pickle within a pickle": (
        pickled(called("pickle.loads", raw(pickled(OS_SYSTEM)))),
        "os.system (in a pickle within a constant)"),
    "a pickle within bytes of protocol 2": (
        pickled(called("_codecs.encode", text(pickled(OS_SYSTEM).decode("latin-1")),
                       text("latin1"))),
        "os.system (in a pickle within a constant)"),
    "a broken pickle within a pickle": (
        pickled(raw(b"\x80\x04" + OS_SYSTEM)),
        "os.system (in a pickle within a constant)"),
    "BUILD on a class": (pickled(ORDERED + table(x=b"N") + b"b"),
                         "attributes set on collections.OrderedDict"),
    "BUILD on a function": (pickled(REBUILD + b"N" + table(x=b"N") + b"\x86b"),
                            "attributes set on torch._utils._rebuild_tensor_v2"),
    "BUILD with slots": (pickled(NO_HOOKS + b"N" + table(x=b"N") + b"\x86b"),
                         "attributes set on OrderedDict"),
    **{f"BUILD on an ordered dict with {kind}": (
        pickled(NO_HOOKS + b"}(" + attribute + b"ub"), "attributes set on OrderedDict")
       for kind, attribute in (
           ("__setstate__", text("__setstate__") + imported("torch.device")),
           ("a private name", text("_x") + b"N"),
           ("a name that is none", b"K\1N"),
           ("a function", text("copy") + imported("torch.device")),
           ("a function as its metadata", text("_metadata") + imported("torch.Size")),
           ("what a call made", text("copy") + called("builtins.list")),
           ("many", b"".join(text(f"a{n}") + b"N" for n in range(101))))},
    "BUILD on a tensor": (pickled(tensor() + b")b"), "attributes set on tensor"),
    "BUILD on a plain dict": (pickled(b"}}b"), "attributes set on dict"),
    "an allowed function given what is computed": (
        pickled(REBUILD + called("builtins.list") + b"R"),
        "torch._utils._rebuild_tensor_v2 with computed arguments"),
    "an allowed function given one such": (
        pickled(called("torch.Size", called("builtins.list"))),
        "torch.Size with computed arguments"),
    "keywords": (pickled(ORDERED + b")" + table(x=b"N") + b"\x92", 4),
                 "an instance made with keyword arguments"),
    "computed keywords": (pickled(ORDERED + b")" + called("a.b") + b"\x92", 4),
                          "an instance made with keyword arguments"),
    "a storage that is allocated": (pickled(called("torch.FloatStorage", whole(2**40))),
                                    "a call of torch.FloatStorage"),
    "a tensor that is allocated": (pickled(called("torch.FloatTensor", whole(2**40))),
                                   "a call of torch.FloatTensor"),
    "bytes that are allocated": (pickled(called("builtins.bytearray", whole(2**40))),
                                 "builtins.bytearray with unusual arguments"),
    "another codec": (pickled(called("_codecs.encode", text("x"), text("zip"))),
                      "_codecs.encode with unusual arguments"),
    "a set of a dict": (pickled(called("builtins.set", b"}")),
                        "builtins.set with unusual arguments"),
    "an ordered dict of numbers": (pickled(called("collections.OrderedDict",
                                                  listed(b"K\x01"))),
                                   "collections.OrderedDict with unusual arguments"),
    "a shape of a dict": (pickled(called("torch.Size", b"}")),
                          "torch.Size with unusual arguments"),
    "a device of a list": (pickled(called("torch.device", b"]")),
                           "torch.device with unusual arguments"),
    "a tensor with hooks": (
        pickled(tensor(hooks=NO_HOOKS + text("x") + imported("torch.Size") + b"s")),
        "a tensor with hooks"),
    "a tensor with metadata": (
        pickled(called("torch._utils._rebuild_tensor_v2", storage(), b"K\0", b")", b")",
                       b"\x89", NO_HOOKS, table(conj=b"N"))),
        "a tensor with unusual metadata"),
    "a parameter of another class": (
        pickled(called("torch._utils._rebuild_parameter_with_state", tensor(), b"\x88",
                       NO_HOOKS, table(__class__=imported("torch.Size")))),
        "unusual attributes set on a tensor"),
    "a tensor rebuilt by what rebuilds": (
        pickled(called("torch._tensor._rebuild_from_type_v2",
                       imported("torch._tensor._rebuild_from_type_v2"),
                       imported("torch.Tensor"), b")", b"N")),
        "torch._tensor._rebuild_from_type_v2 of no plain tensor"),
    "a tensor rebuilt of what is computed": (
        pickled(called("torch._tensor._rebuild_from_type_v2",
                       imported("torch._utils._rebuild_tensor_v2"),
                       imported("torch.Tensor"), row(called("a.b")), b"N")),
        "torch._tensor._rebuild_from_type_v2 with computed arguments"),
    "a tensor of another class": (
        pickled(called("torch._tensor._rebuild_from_type_v2",
                       imported("torch._utils._rebuild_tensor_v2"),
                       imported("a.Tensor"), b")", b"N")), "a.Tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", HARMFUL)
def test_what_could_do_harm_is_found(case: str) -> None:
    content, finding = HARMFUL[case]
    assert finding in findings(content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cut short"),
        (b"\x80", "cut short"),
        (b"\x80\x04N", "cut short"),
        (b"\x80\x06N.", "unknown protocol, 6"),
        (b"\xff.", "unknown instruction 0xff"),
        (b".", "takes more from its stack"),
        (b"0N.", "mark that is not there"),
        (b"1N.", "mark that is not there"),
        (b"t.", "mark that is not there"),
        (b"(1.", "takes more from its stack"),
        (b"N\x85\x86.", "takes more from its stack"),
        (b"h\0.", "value that is not there"),
        (b"g7\n.", "value that is not there"),
        (b"gx\n.", "a number that is none"),
        (b"Np-1\n.", "negative number"),
        (b"q\0.", "takes more from its stack"),
        (b"I1x\n.", "a number that is none"),
        (b"Fx\n.", "a number that is none"),
        (b"L" + b"9" * 2000 + b"\n.", "line that is too long"),
        (b"L99", "cut short"),
        (b"c" + b"m" * 2000 + b"\nname\n.", "line that is too long"),
        (b"X\x80\0\0\0" + b"m" * 128 + b"X\xd0\x07\0\0" + b"n" * 2000 + b"\x93.",
         "name that is too long"),
        (b"\x8b\xff\xff\xff\x7f.", "number that is too long"),
        (b"\x8d" + b"\xff" * 8 + b".", "cut short"),
        (b"\x8e" + b"\xff" * 8 + b".", "cut short"),
        (b"\x96" + b"\xff" * 8 + b".", "cut short"),
        (b"\x95" + b"\xff" * 8 + b"N.", "cut short"),
        (b"X\xff\xff\xff\x7fabc.", "cut short"),
        (b"T\xff\xff\xff\xffabc.", "cut short"),
        (b"X\x01\0\0\0\xff.", "text that is none"),
        (b"c\xff\nx\n.", "text that is none"),
        (b"V\\uzz\n.", "text that is none"),
        (b"Snone\n.", "a string without quotes"),
        (b"S'\n.", "a string without quotes"),
        (b"NNs.", "takes more from its stack"),
        (b"NNNs.", "as if it were a dict"),
        (b"}(Nu.", "a key without a value"),
        (b"(Nd.", "a key without a value"),
        (b"NNa.", "as if it were a list"),
        (b"](N\x90.", "as if it were a set"),
        (b"N)R.", "as if it were a function"),
        (imported("os.system") + b"NR.", "a tuple of arguments"),
        (imported("os.system") + b")N\x92.", "a dict of arguments"),
        (called("builtins.set", b"]", b"]") + b".", "too few or many"),
        (b"(o.", "an instance of nothing"),
        (b"Pid\n.", "refers by text"),
        (b"\x97.", "buffers from outside"),
        (b"N\x98.", "buffers from outside"),
        (b")Q.", "refers to what is not a storage"),
        (b"NQ.", "refers to what is not a storage"),
        (row(text("storage"), b"N", text("0"), b"N", b"K\1") + b"Q.", "not a storage"),
        (storage(kind="os.system") + b".", "not a storage"),
        (storage(count=-1) + b".", "not a storage"),
        (storage(count=2**80) + b".", "not a storage"),
        (storage("0", 1, "torch.FloatStorage", b"N", b"N") + b".", "not a storage"),
        (storage("0", 1) + storage("0", 2) + b".", "do not agree how large"),
        (storage("0", 6, "torch.FloatStorage", row(text("v"), b"K\5", b"K\2")) + b".",
         "outside the storage"),
        (storage("0", 6, "torch.FloatStorage", b"K\5") + b".", "outside the storage"),
        (called("collections.OrderedDict", b"N", b"N") + b".", "too few or many"),
        (called("torch.Size", *[b"N"] * 17) + b".", "many values"),
        (called("_codecs.encode", text("\u20ac"), text("latin1")) + b".", "none"),
    ],
)  # fmt: skip
def test_what_cannot_be_unpickled_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        scanned(content)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (tensor(shape=(2, 4)), "reaches beyond"),
        (tensor(offset=1), "reaches beyond"),
        (tensor(offset=-1), "not a view"),
        (tensor(offset=2**63), "not a view"),
        (tensor(strides=(100, 1)), "reaches beyond"),
        (tensor(strides=(-3, 1)), "a shape that is none"),
        (tensor(shape=(-2, 3)), "a shape that is none"),
        (tensor(shape=(2,)), "not a view"),
        (tensor(b"N"), "not a view"),
        (tensor(shape=(2**40, 2**40), strides=(0, 0)), "more elements than can be"),
        (tensor(shape=(1,) * 65, strides=(0,) * 65), "a shape that is none"),
        (called("torch._utils._rebuild_parameter", b"N", b"\x88", NO_HOOKS),
         "not made of a tensor"),
        (called("torch._utils._rebuild_parameter_with_state", tensor(), b"\x88",
                NO_HOOKS, b"(NNNt"), "attributes that are none"),
        (called("torch._utils._rebuild_tensor_v3", storage(), b"K\0", b")", b")",
                b"\x89", NO_HOOKS, b"N"), "no known type"),
        (called("torch._utils._rebuild_sparse_tensor", b"N", b")"), "not one"),
        *((called("torch._utils._rebuild_qtensor", storage(), b"K\0", row(b"K\6"),
                  row(b"K\1"), quantizer, b"\x89", NO_HOOKS), reason)
          for quantizer, reason in (
              (b"N", "does not say how"),
              (b")", "does not say how"),
              (row(text("torch.per_tensor_affine")), "does not say how"),
              (row(imported("torch.float32")), "does not say how"),
              (row(imported("torch.per_tensor_affine"), b"N", b"N"), "do not fit"),
              (row(imported("torch.per_channel_affine"), listed(b"N"), listed(b"N"),
                   b"K\0"), "do not fit"),
              (row(imported("torch.per_channel_affine"), b"N", b"N", b"K\0"),
               "do not fit"),
              (row(imported("torch.per_channel_affine"), listed(b"N"), listed(b"N"),
                   b"K\1"), "do not fit"),
          )),
    ],
)  # fmt: skip
def test_tensors_that_cannot_be_are_refused(made: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        scanned(pickled(made))


@pytest.mark.parametrize(
    ("made", "dtype", "shape", "elements"),
    [
        (tensor(), "float32", (2, 3), 6),
        (tensor(shape=(0, 9), strides=(9, 1), offset=6), "float32", (0, 9), 0),
        (tensor(shape=(), strides=(), offset=5), "float32", (), 1),
        (tensor(shape=(9,), strides=(0,), offset=5), "float32", (9,), 9),
        (tensor(storage(kind="torch.cuda.HalfStorage")), "float16", (2, 3), 6),
        (tensor(storage(count=3, kind="torch.QUInt4x2Storage")), "quint4x2", (2, 3), 6),
        (tensor(storage("0", 9, "torch.FloatStorage", row(text("v"), b"K\3", b"K\6"))),
         "float32", (2, 3), 6),
        (called("torch._utils._rebuild_tensor", storage(), b"K\0", row(b"K\6"),
                row(b"K\1")), "float32", (6,), 6),
        (called("torch._utils._rebuild_tensor_v2", storage(), b"K\0", row(b"K\6"),
                row(b"K\1"), b"\x89", b"N", table(conj=b"\x88")), "float32", (6,), 6),
        (called("torch._utils._rebuild_tensor_v2", storage(), b"K\0", row(b"K\6"),
                row(b"K\1"), b"\x89", b")", b"N"), "float32", (6,), 6),
        (called("torch._utils._rebuild_tensor_v3",
                storage(count=8, kind="torch.storage.UntypedStorage"), b"K\0",
                row(b"K\4"), row(b"K\1"), b"\x89", NO_HOOKS, imported("torch.uint16")),
         "uint16", (4,), 4),
        (called("torch._utils._rebuild_parameter", tensor(), b"\x88", NO_HOOKS),
         "float32", (2, 3), 6),
        (called("torch._utils._rebuild_parameter_with_state", tensor(), b"\x88",
                NO_HOOKS, row(table(note=text("x")), b"N")), "float32", (2, 3), 6),
        (called("torch._tensor._rebuild_from_type_v2", REBUILD,
                imported("torch.nn.parameter.Parameter"),
                row(storage(), b"K\0", row(b"K\6"), row(b"K\1"), b"\x89", NO_HOOKS),
                table(note=b"N")), "float32", (6,), 6),
        *((called("torch._utils._rebuild_qtensor",
                  storage(count=3, kind="torch.QInt8Storage"), b"K\0", row(b"K\3"),
                  row(b"K\1"), quantizer, b"\x89", NO_HOOKS), "qint8", (3,), 3)
          for quantizer in (
              row(imported("torch.per_tensor_affine"), b"K\1", b"K\0"),
              row(imported("torch.per_channel_affine"), listed(*[b"K\1"] * 3),
                  listed(*[b"K\0"] * 3), b"K\0"),
              row(imported("torch.per_channel_affine"),
                  tensor(storage("s", 3), (3,), (1,)),
                  tensor(storage("z", 3, "torch.LongStorage"), (3,), (1,)), b"K\0"),
          )),
        *((called("torch._utils._rebuild_sparse_tensor",
                  called("torch.serialization._get_layout", text("torch.sparse_coo")),
                  row(tensor(), *parts, row(b"K\x09", b"K\x09"), *more)),
           "float32", (9, 9), 6)
          for parts, more in (
              ((tensor(),), ()),
              ((tensor(),), (b"\x88",)),
              ((tensor(), tensor()), ()),
          )),
        (called("torch._utils._rebuild_meta_tensor_no_storage",
                imported("torch.bfloat16"), row(b"K\4"), row(b"K\1"), b"\x89"),
         "bfloat16", (4,), 4),
        (called("torch._utils._rebuild_device_tensor_from_cpu_tensor", tensor(),
                imported("torch.bfloat16"), text("xla:0"), b"\x89"),
         "bfloat16", (2, 3), 6),
    ],
)  # fmt: skip
def test_tensors_are_understood(
    made: bytes, dtype: str, shape: tuple[int, ...], elements: int
) -> None:
    value, report = scanned(pickled(made))
    assert not report.unsafe
    assert isinstance(value, Tensor)
    assert (value.dtype, value.shape, value.elements) == (dtype, shape, elements)


@pytest.mark.parametrize(
    "content",
    [
        pickled(NO_HOOKS + table(_metadata=b"}") + b"b"),
        pickled(NO_HOOKS + table(_metadata=NO_HOOKS, note=text("x")) + b"b"),
        pickled(called("collections.Counter") + table(note=b"N") + b"b"),
        pickled(called("collections.OrderedDict", listed(row(b"N", b"N")))),
        pickled(called("collections.Counter", table(x=b"K\1"))),
        pickled(ORDERED + b")}\x92", 4),
        pickled(called("torch.Size", row(b"K\1", b"K\2"))),
        pickled(called("torch.Size")),
        pickled(called("torch.device", text("cuda"), b"K\0")),
        pickled(called("builtins.set", listed(b"K\1"))),
        pickled(called("__builtin__.set")),
        pickled(called("builtins.complex", b"K\1", b"K\2")),
        pickled(called("builtins.bytearray")),
        pickled(called("builtins.bytearray", raw(b"\x80\x02."))),
        pickled(called("builtins.bytearray", text("\xff"), text("latin-1"))),
        pickled(called("_codecs.encode", text("\xff"), text("latin1"))),
        pickled(imported("torch.float8_e4m3fn")),
        pickled(imported("torch.cuda.sparse.HalfTensor")),
        pickled(row(text("module"), imported("torch.Size"), b"NN") + b"Q"),
        pickled(raw(b"\x80\x02cos\n")),
        pickled(row(b"U\1\xff", b"S'\xff'\n", b'S"\xff"\n')),
    ],
)
def test_what_torch_saves_is_harmless(content: bytes) -> None:
    assert findings(content) == []


@pytest.mark.parametrize(
    "value",
    [
        imported("__torch__.Net") + b")\x81" + table(w=tensor()) + b"b",
        imported("__torch__.torch.nn.modules.conv.Conv2d"),
        imported("__torch__.torch.classes.quantized.Conv2dPackedParamsBase"),
        called("__torch__.Colour", b"K\1"),
        called("torch.jit._pickle.build_intlist", listed(b"K\1")),
        called("torch.jit._pickle.restore_type_tag", b"}", text("Dict[str, int]")),
        called(
            "torch.jit._pickle.build_tensorlist",
            listed(called("__torch__.Net") + b"N" + b"b"),
        ),
    ],
)
def test_torchscript_is_harmless_within_its_archives_only(value: bytes) -> None:
    assert findings(pickled(value), torchscript=True) == []
    assert findings(pickled(value))


def test_torchscript_allows_nothing_else() -> None:
    for path in (
        *("os.system", "__torch__x.y", "torch.jit._pickle.os.system"),
        "__torch__.torch.classes.torchvision.Video",
    ):
        assert findings(pickled(imported(path)), torchscript=True) == [path]


def test_imports_are_listed_in_order_and_once() -> None:
    value = row(imported("b.b"), imported("a.a"), imported("b.b"), ORDERED)
    _, report = scanned(pickled(value))
    assert list(report.imports) == ["b.b", "a.a", "collections.OrderedDict"]
    assert list(report.findings) == ["b.b", "a.a"]


def test_findings_are_kept_up_to_a_number_but_the_verdict_always() -> None:
    allowed = row(*(imported(f"__torch__.C{n}") for n in range(300)))
    harmful = row(*(imported(f"a.b{n}") for n in range(100)))
    _, report = scanned(pickled(row(allowed, harmful)), torchscript=True)
    assert len(report.imports) == 200
    assert list(report.findings) == [f"a.b{n}" for n in range(50)]


def test_what_came_before_an_error_is_reported() -> None:
    report = Report()
    with pytest.raises(ValueError, match="unknown instruction"):
        scan(pickled(OS_SYSTEM + b"\xff"), TorchImports(torchscript=False), report)
    assert list(report.findings) == ["os.system"]
    assert report.calls == 1


def test_a_row_of_pickles_is_read_one_by_one() -> None:
    content = b"N." + b"K\x07."
    imports, report = TorchImports(torchscript=False), Report()
    assert scan(content, imports, report) == (None, 2)
    assert scan(content, imports, report, 2) == (7, 5)


def test_instructions_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "MOST_OPCODES", 1000)
    nested = pickled(raw(b"\x80\x02" + b"N0" * 300 + b"N."))
    scanned(nested)
    for content in (b"N0" * 500 + b"N.", pickled((nested[2:-1] + b"0") * 2 + b"N")):
        with pytest.raises(LimitExceededError, match="1000"):
            scanned(content)


def test_copies_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pt_imports, "MOST_WORK", 10_000)
    start = text("x" * 4000) + b"q\x000" + listed(*[b"))\x86"] * 50) + b"q\x010"
    encode = imported("_codecs.encode") + b"h\0" + text("latin1") + b"\x86R0"
    ordered = ORDERED + b"h\1\x85R0"
    scanned(pickled(start + encode * 2 + b"N"))
    for calls in (encode * 3, ordered * 4, (ORDERED + table(x=b"N") + b"\x85R0") * 200):
        with pytest.raises(LimitExceededError, match="10000"):
            scanned(pickled(start + calls + b"N"))


def test_deep_and_circular_values_are_followed() -> None:
    deep = b"(" * 60_000 + b"t" * 60_000
    value, _ = scanned(pickled(deep))
    assert value is not None
    scanned(pickled(b"]\x94h\0a"))
    scanned(pickled(b"N" + b"\x85" * 60_000))
    scanned(pickled(b"}" + b"}q\0Nh\0s" * 30_000))
    made = called("a.b") + b"q\0h\0b" + text("x") + b"h\0s" + b"h\0a" + b"(h\0\x90"
    assert findings(pickled(made)) == ["a.b"]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\x80\x02N.", True),
        (b"\x80\x05N.", True),
        (b"\x80\x06N.", False),
        (b"\x80\x02N", False),
        (b"cos\n", False),
        (b"", False),
    ],
)
def test_pickles_of_newer_protocols_have_a_signature(
    head: bytes, expected: bool
) -> None:
    assert looks_pickled(head) is expected


def plain(value: object) -> Any:
    """What a symbolic value stands for."""
    if isinstance(value, Items):
        return {plain(key): plain(item) for key, item in value.pairs}
    if isinstance(value, Members):
        return {plain(member) for member in value.members}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    return value


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=300)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.lists(inner).map(tuple)
        | st.sets(st.integers())
    ),
    max_leaves=20,
)


@given(VALUES, st.integers(0, 5))
def test_what_pickle_writes_is_read_as_it_was(value: object, protocol: int) -> None:
    read, report = scanned(pickle.dumps(value, protocol))
    assert plain(read) == value
    assert not [name for name in report.findings if "constant" not in name]


class Stub:
    """Takes part in whatever a pickle does, and does nothing."""

    def __init__(self, *_arguments: object, **_keywords: object) -> None: ...

    def __call__(self, *_arguments: object, **_keywords: object) -> Stub:
        return Stub()

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, item: object) -> None: ...

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...

    def add(self, item: object) -> None: ...


class Recorder(pickle.Unpickler):
    """Python's own unpickler, which imports stand-ins only."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), fix_imports=False, encoding="utf-8")
        self.imported: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        self.imported.append(f"{module}.{name}")
        return Stub

    def persistent_load(self, _identity: object) -> Any:
        return Stub()


FRAGMENTS = st.sampled_from(
    [
        *(bytes([code]) for code in b"(.012NtlRabde}sou)]Q\x81\x85\x86\x87\x88\x89"),
        *(b"\x8f", b"\x90", b"\x91", b"\x92", b"\x93", b"\x94", b"h\0", b"h\1", b"q\0"),
        *(b"q\1", b"r\1\0\0\0", b"j\0\0\0\0", b"g0\n", b"p1\n", b"p 2\n", b"g+1\n"),
        *(b"cos\nsystem\n", b"ios\nsystem\n", ORDERED, b"ca\nb.c\n"),
        *(short("os"), short("system"), text("os"), b"Vos\n", b"V\\u006fs\n"),
        *(b"U\x02os", b"T\x02\0\0\0os", b"S'os'\n", b'S"o\\x73"\n', b"C\x02os"),
        *(b"I01\n", b"I7\n", b"L7L\n", b"F1.5\n", b"K\1", b"\x8a\1\1", b"\x82\1"),
        *(b"\x95\1\0\0\0\0\0\0\0", b"\x95\0\0\0\0\0\0\0\0", b"\x80\4"),
        b"\x96" + b"\0" * 8,
    ]
)  # fmt: skip


@given(st.lists(FRAGMENTS, max_size=30).map(b"".join))
def test_no_import_is_missed_that_python_makes(middle: bytes) -> None:
    # Enough on the stack, of what most instructions can work with.
    content = b"(}((])" + imported("a.b") * 2 + short("os") * 2 + middle + b"N."
    recorder = Recorder(content)
    with suppress(Exception):  # whatever stops it, it imported before
        recorder.load()
    report = Report()
    try:
        scan(content, TorchImports(torchscript=False), report)
    except ValueError:
        return  # refused, whatever is in it
    unknown = {"an import whose name is computed"} & set(report.findings)
    assert unknown or set(recorder.imported) <= set(report.imports)


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_read_or_refused(content: bytes, torchscript: bool) -> None:
    try:
        value, end = scan(content, TorchImports(torchscript=torchscript), Report())
    except ValueError:
        return
    assert end <= len(content)
    assert isinstance(
        value,
        (
            *(type(None), bool, int, float, str, bytes, list, tuple, Items, Members),
            *(Made, Known, Import),
        ),
    )
