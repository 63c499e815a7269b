"""Hostile models: what each is, how it is answered, and what the answer says."""

from __future__ import annotations

import random
import struct
from typing import Any

import h5py  # type: ignore[import-untyped] # it has no types

from tests.fakes import hostile_files as made
from tests.fakes import onnx_files, tflite_files
from tests.fakes.archive_files import Entry, tar_gz, zip_file
from tests.fakes.hdf5_files import hdf5, keras_model, layer, model
from tests.fakes.hostile_files import (
    CRASHED,
    MISMATCH,
    TOO_LARGE,
    UNSAFE,
    Case,
    Content,
    calling,
    imported,
    imported_by_stack,
    tar_member,
    torch_legacy,
    torch_zip,
)
from tests.fakes.pt_files import (
    NO_HOOKS,
    legacy,
    pickled,
    storage,
    table,
    tensor,
    text,
    torchscript,
    zipped,
)

TFLITE = tflite_files.model(
    tflite_files.graph(
        [tflite_files.tensor("x"), tflite_files.tensor("w", buffer=1)],
        [tflite_files.operator(0, (0, 1), (0,))],
        inputs=(0,),
        outputs=(0,),
    ),
    codes=[tflite_files.code(0)],
    buffers=(b"", bytes(8)),
)
ONNX = onnx_files.model(
    onnx_files.GRAPH + onnx_files.initializer((2,), 1, (9, bytes(8)))
)

# Pickles.

SYSTEM = calling("os", "system")
BY_MEMO = pickled(
    text("os") + b"q\0" + text("system") + b"q\1" + b"00"
    b"h\0h\1\x93(" + made.COMMAND + b"tR"
)
BY_FRAME = pickled(
    b"\x95" + struct.pack("<Q", 14) + b"\x8c\x02os\x94\x8c\x06system\x94\x93"
    b"(" + made.COMMAND + b"tR",
    4,
)
IN_CONSTANT = pickled(
    table(w=tensor(), x=b"B" + struct.pack("<I", len(SYSTEM)) + SYSTEM)
)
TEXT_PROTOCOL = b"cos\nsystem\n(S'touch /tmp/harm'\ntR."
SEVEN_ZIP = b"7z\xbc\xaf\x27\x1c\0\4" + random.Random(7).randbytes(200)


def pickle_cases() -> dict[str, Case]:
    pickles = {
        "os.system": (SYSTEM, "os.system"),
        "posix.system": (calling("posix", "system"), "posix.system"),
        "nt.system": (calling("nt", "system"), "nt.system"),
        "subprocess.Popen": (calling("subprocess", "Popen"), "subprocess.Popen"),
        "builtins.eval": (calling("builtins", "eval"), "builtins.eval"),
        "builtins.exec": (calling("builtins", "exec"), "builtins.exec"),
        "Python 2's eval": (calling("__builtin__", "eval"), "__builtin__.eval"),
        "builtins.getattr": (calling("builtins", "getattr"), "builtins.getattr"),
        "operator.attrgetter": (calling("operator", "attrgetter"), "attrgetter"),
        "importlib": (calling("importlib", "import_module"), "import_module"),
        "runpy": (calling("runpy", "_run_code"), "runpy._run_code"),
        "pip.main": (calling("pip", "main"), "pip.main"),
        "pty.spawn": (calling("pty", "spawn"), "pty.spawn"),
        "timeit": (calling("timeit", "timeit"), "timeit.timeit"),
        "a re-export by torch": (
            pickled(
                made.called(
                    imported_by_stack("torch", "serialization.os.system"),
                    made.COMMAND,
                ),
                4,
            ),
            "torch.serialization.os.system",
        ),
        "a re-export by a module of torch": (
            calling("torch.serialization", "os.system"),
            "torch.serialization.os.system",
        ),
        "torch.hub.load": (calling("torch.hub", "load"), "torch.hub.load"),
        "torch.load": (calling("torch", "load"), "torch.load"),
        "unpickling by torch": (
            calling("torch.storage", "_load_from_bytes"),
            "torch.storage._load_from_bytes",
        ),
        "a class of the author's": (
            pickled(imported("model", "Net") + b")\x81}b"),
            "model.Net",
        ),
        "pickle.loads of a constant": (calling("_pickle", "loads"), "_pickle.loads"),
        "a pickle in a constant": (IN_CONSTANT, "os.system"),
        "STACK_GLOBAL": (
            pickled(made.called(imported_by_stack("os", "system"), text("x"))),
            "os.system",
        ),
        "STACK_GLOBAL from the memo": (BY_MEMO, "os.system"),
        "STACK_GLOBAL within a frame": (BY_FRAME, "os.system"),
        "STACK_GLOBAL of a computed name": (
            pickled(text("os") + NO_HOOKS + b"\x93)R"),
            "computed",
        ),
        "INST": (b"(S'x'\nios\nsystem\n.", "os.system"),
        "OBJ": (pickled(b"(" + imported("os", "system") + text("x") + b"o"), "os.sy"),
        "NEWOBJ_EX": (
            pickled(imported("os", "system") + text("x") + b"\x85}\x92", 4),
            "os.system",
        ),
        "an extension of copyreg": (pickled(b"\x82\x01)R"), "extension"),
        "protocol 0": (TEXT_PROTOCOL, "os.system"),
        "what is popped again": (
            pickled(imported("os", "system") + b"0" + table(w=tensor())),
            "os.system",
        ),
        "what comes behind the end": (made.WEIGHTS + SYSTEM, "after the end"),
        "a method set on an ordered dict": (
            pickled(
                NO_HOOKS
                + table(__setstate__=imported("torch", "device"))
                + b"b"
                + table(a=b"N")
                + b"b"
            ),
            "attributes set on OrderedDict",
        ),
        "attributes set on a class": (
            pickled(imported("torch", "Tensor") + b"}(" + text("a") + b"Nub"),
            "attributes",
        ),
        "an encoder with another codec": (
            pickled(made.called(imported("_codecs", "encode"), NO_HOOKS, text("x"))),
            "_codecs.encode",
        ),
    }
    cases: dict[str, Case] = {
        f"pickle: {kind}": ("pt", torch_zip(content), UNSAFE, said)
        for kind, (content, said) in pickles.items()
    }
    for kind in ("os.system", "STACK_GLOBAL from the memo", "a re-export by torch"):
        content, said = pickles[kind]
        cases[f"legacy pickle: {kind}"] = (
            "pt",
            torch_legacy(content[2:-1]),
            UNSAFE,
            said,
        )
    members = {
        "a member of another name": {"notes.txt": SYSTEM},
        "a member without a name to tell": {"extra/x": TEXT_PROTOCOL},
        "a storage's neighbour": {"data/1.bin": SYSTEM},
        "a second pickle": {"other.pkl": SYSTEM},
        "constants": {"constants.pkl": SYSTEM},
    }
    for kind, added in members.items():
        content = torch_zip(members=added)
        cases[f"pickle in {kind}"] = ("pt", content, UNSAFE, "os.system")
    archives = {
        "a 7z archive": SEVEN_ZIP,
        "a nested ZIP archive": torch_zip(SYSTEM),
        "a nested tar.gz archive": tar_gz(tar_member("data.pkl", SYSTEM)),
        "a nested tar archive": tar_member("data.pkl", SYSTEM) + bytes(1024),
    }
    for kind, content in archives.items():
        cases[f"pickle in {kind}"] = (
            "pt", torch_zip(members={"extra/model": content}), UNSAFE, "extra/model",
        )  # fmt: skip
    return cases


def of_tensor(elements: int, stored: int = 6) -> bytes:
    return pickled(table(w=tensor(storage("0", stored), (elements,), (1,))))


def pt_cases() -> dict[str, Case]:
    own_code = b"def f(x):\n  torch.save(x, '/tmp/harm')\n"
    return {
        "pt: a pickle alone": ("pt", SYSTEM, MISMATCH, "pickle"),
        "pt: a pickle alone as .pth": ("pth", SYSTEM, MISMATCH, "pickle"),
        "pt: a 7z archive": ("pt", SEVEN_ZIP, MISMATCH, "7z"),
        "pt: Python code": (
            "pt", torch_zip(members={"setup.py": b"import os"}), UNSAFE, "setup.py",
        ),
        "pt: a program": (
            "pt", torch_zip(members={"a.so": b"\x7fELF" + bytes(60)}), UNSAFE, "a.so",
        ),
        "pt: TorchScript that writes files": (
            "pt", torchscript(code=own_code), UNSAFE, "torch.save",
        ),
        "pt: TorchScript that writes files by a library": (
            "pt",
            torchscript(code=b"def f(x):\n  ops.image.write_file('/tmp/harm', x)\n"),
            UNSAFE,
            "ops.image.write_file",
        ),
        "pt: instructions that write files by a library": (
            "pt",
            torchscript(members={"bytecode.pkl": pickled(text("image::write_file"))}),
            UNSAFE,
            "image::write_file",
        ),
        "pt: TorchScript with os.system": (
            "pt",
            torch_zip(SYSTEM, {"constants.pkl": pickled(b")"), "code/a.py": b"a"}),
            UNSAFE,
            "os.system",
        ),
        "pt: a tensor beyond its storage": (
            "pt", torch_zip(of_tensor(9)), MISMATCH, "",
        ),
        "pt: a storage that is too small": (
            "pt", torch_zip(of_tensor(9, 9)), MISMATCH, "36",
        ),
        "pt: a storage that is missing": (
            "pt", zipped({"data.pkl": made.WEIGHTS}), MISMATCH, "missing",
        ),
        "pt: a huge tensor": (
            "pt", torch_zip(of_tensor(2**31 - 1)), MISMATCH, "",
        ),
        "pt: a stack that is empty": (
            "pt", torch_zip(pickled(b"R")), MISMATCH, "stack",
        ),
        "pt: a length beyond all memory": (
            "pt", torch_zip(pickled(b"\x8e" + b"\xff" * 7 + b"\x7f")), MISMATCH, "cut",
        ),
        "pt: an unknown opcode": (
            "pt", torch_zip(pickled(b"\xff")), MISMATCH, "unknown",
        ),
        "pt: too many instructions": (
            "pt", lambda: torch_zip(pickled(b"N0" * 2_100_000 + b"N")), TOO_LARGE, "",
        ),
        "pt: bytes behind the storages": (
            "pt", legacy() + b"x", MISMATCH, "after its last storage",
        ),
        "pt: a ZIP archive behind a legacy file": (
            "pt", legacy() + zip_file(Entry("a")), MISMATCH, "",
        ),
        "pt: a path that slips out": (
            "pt", zip_file(Entry("archive/data.pkl", made.WEIGHTS), Entry("../a")),
            UNSAFE, "../a",
        ),
        "pt: two members of a name": (
            "pt",
            zip_file(*[Entry("archive/data.pkl", content)
                     for content in (made.WEIGHTS, SYSTEM)]),
            UNSAFE, "twice",
        ),
        "pt: names that differ in case": (
            "pt", torch_zip(members={"DATA.pkl": SYSTEM}), MISMATCH, "case",
        ),
    }  # fmt: skip


# Models.


def onnx_cases() -> dict[str, Case]:
    tensor, field, model = onnx_files.tensor, onnx_files.field, onnx_files.model
    entry = onnx_files.message((1, b"location"), (2, b"../../etc/passwd"))
    external = onnx_files.initializer((2,), 1, (13, entry), (14, 1))
    constant = onnx_files.message((1, b"value"), (5, tensor((2,), 1, (13, entry))))
    node = field(1, onnx_files.message((4, b"Constant"), (5, constant)))
    deep = 100_000
    graphs = made.nested(deep, made.within(1, 5, 6), onnx_files.GRAPH)
    types = made.nested(deep, made.within(4, 1))
    value = onnx_files.message((1, b"x"), (2, types))
    huge = onnx_files.varint(2**64 - 1)
    cases: dict[str, tuple[Content, tuple[int, str], str]] = {
        "external data": (model(external), UNSAFE, "etc/passwd"),
        "external data of a constant": (model(node), UNSAFE, "etc/passwd"),
        "external data in a subgraph": (
            model(field(1, onnx_files.message(
                (4, b"If"), (5, onnx_files.message((1, b"then"), (6, external)))
            ))),
            UNSAFE, "etc/passwd",
        ),
        "graphs 100,000 deep": (model(graphs), MISMATCH, "deep"),
        "types 100,000 deep": (model(field(11, value)), MISMATCH, "deep"),
        "groups 100,000 deep": (b"\x0b" * deep + ONNX, MISMATCH, ""),
        "a length of 2**64 - 1": (b"\x3a" + huge + ONNX, MISMATCH, ""),
        "a length within a graph beyond it": (
            b"\x08\x08" + field(7, b"\x12\x7fgraph") + field(8, onnx_files.OPSET),
            MISMATCH, "",
        ),
        "a length of 2**63 within a graph": (
            model(b"\x0a" + onnx_files.varint(2**63)), MISMATCH, "",
        ),
        "a number of eleven bytes": (
            b"\x08" + b"\x80" * 10 + b"\1" + ONNX, MISMATCH, "",
        ),
        "a number that never ends": (ONNX + b"\xff" * 1000, MISMATCH, ""),
        "field 0": (b"\x00\x00" + ONNX, MISMATCH, ""),
        "a second graph": (ONNX + field(7, onnx_files.GRAPH), MISMATCH, "twice"),
        "a negative dimension": (model(onnx_files.initializer((-2,))), MISMATCH, ""),
        "dimensions of 2**120 elements": (
            model(onnx_files.initializer((2**60, 2**60), 1, (9, b""))), MISMATCH, "",
        ),
        "dimensions that wrap to 0": (
            model(onnx_files.initializer((2**32, 2**32), 1, (9, b""))), MISMATCH, "",
        ),
        "fewer bytes than its shape": (
            model(onnx_files.initializer((2,), 1, (9, b"1234"))), MISMATCH, "",
        ),
        "no operator set": (b"\x08\x08" + field(7, onnx_files.GRAPH), MISMATCH, ""),
        "a name that is not UTF-8": (model(field(2, b"\xff\xfe")), MISMATCH, ""),
    }  # fmt: skip
    return {f"onnx: {kind}": ("onnx", *case) for kind, case in cases.items()}


def replaced(content: bytes, at: int, value: int) -> bytes:
    return content[:at] + struct.pack("<I", value) + content[at + 4 :]


def tflite_cases() -> dict[str, Case]:
    root = struct.unpack_from("<I", TFLITE)[0]
    vtable = root - struct.unpack_from("<i", TFLITE, root)[0]
    graphs = root + struct.unpack_from("<H", TFLITE, vtable + 4 + 2 * 2)[0]
    vector = graphs + struct.unpack_from("<I", TFLITE, graphs)[0]
    graph = vector + 4 + struct.unpack_from("<I", TFLITE, vector + 4)[0]
    model, operator = tflite_files.model, tflite_files.operator
    cases = {
        "a root outside": replaced(TFLITE, 0, 2**32 - 1),
        "a root within its identifier": replaced(TFLITE, 0, 4),
        "a vtable before the file": replaced(TFLITE, root, 2**31 - 1),
        "a vtable behind the file": replaced(TFLITE, root, 2**31),
        "its graphs outside": replaced(TFLITE, graphs, 2**31),
        "graphs beyond number": replaced(TFLITE, vector, 2**32 - 1),
        "a graph outside": replaced(TFLITE, vector + 4, 2**32 - 4),
        "a graph that is the model": replaced(
            TFLITE, vector + 4, (root - vector - 4) & made.LAST_32
        ),
        "a graph's vtable outside": replaced(TFLITE, graph, 2**31 - 8),
        "another identifier": TFLITE[:4] + b"TFL9" + TFLITE[8:],
        "an operator without its code": model(
            tflite_files.graph([tflite_files.tensor("x")], [operator(7)])
        ),
        "a tensor without its buffer": model(
            tflite_files.graph([tflite_files.tensor("x", buffer=9)])
        ),
        "an input that is no tensor": model(tflite_files.graph(inputs=(5,))),
        "fewer bytes than a tensor's shape": model(
            tflite_files.graph([tflite_files.tensor("w", (99,), buffer=1)]),
            buffers=(b"", bytes(8)),
        ),
        "a shape of 2**62 elements": model(
            tflite_files.graph([tflite_files.tensor("w", (2**31 - 1,) * 2, buffer=1)]),
            buffers=(b"", bytes(8)),
        ),
    }
    return {
        f"tflite: {kind}": ("tflite", content, MISMATCH, "")
        for kind, content in cases.items()
    }


LAMBDA = {
    "class_name": "Lambda",
    "config": {"name": "evil", "function": ["4wEA", None]},
}


HDF5 = hdf5(lambda file: file.create_dataset("layer/kernel", data=[1.0, 2.0]))


def external_storage(file: Any) -> None:
    file.create_dataset("w", (8,), "u1", external=[("/etc/passwd", 0, 8)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((8,), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (8,))
    file.create_virtual_dataset("w", layout)


def looping_tree() -> bytes:
    """A group whose B-tree has itself as its child: HDF5's library recurses."""
    content = bytearray(HDF5)
    at = content.index(b"TREE")
    content[at + 5] = 1  # its level, over 0: its children are trees
    content[at + 32 : at + 40] = struct.pack("<Q", at)
    return bytes(content)


def hanging() -> bytes:
    """A heap in which HDF5's library (2.0) looks for the end without end.

    The size of an object, with that of its header, wraps to 0.
    """
    content = bytearray(keras_model(model("Sequential")))
    at = content.index(b"GCOL") + 16
    content[at + 8 : at + 16] = struct.pack("<Q", 2**64 - 16)
    return bytes(content)


def hdf5_cases() -> dict[str, Case]:
    def damaged(signature: bytes, offset: int, value: bytes) -> bytes:
        content = HDF5
        at = content.index(signature) + offset
        return content[:at] + value + content[at + len(value) :]

    last = b"\xff" * 8
    cases: dict[str, tuple[bytes, tuple[int, str], str]] = {
        "an external link": (
            hdf5(lambda file: file.update(
                {"a": h5py.ExternalLink("/etc/passwd", "/")}
            )),
            UNSAFE, "/etc/passwd",
        ),
        "external storage": (hdf5(external_storage), UNSAFE, "/etc/passwd"),
        "a virtual dataset": (hdf5(virtual), UNSAFE, "/etc/passwd"),
        "a Lambda layer": (keras_model(model("Sequential", LAMBDA)), UNSAFE, "Lambda"),
        "a Lambda layer in another": (
            keras_model(model(
                "Sequential",
                {"class_name": "TimeDistributed", "config": {"layer": LAMBDA}},
            )),
            UNSAFE, "Lambda",
        ),
        "a module to import": (
            keras_model(model(
                "Sequential",
                {"module": "os", "class_name": "system", "config": {"command": "x"}},
            )),
            UNSAFE, "os.system",
        ),
        **{
            f"a layer that is {called}": (
                keras_model(model("Sequential", layer(kind, **settings))), UNSAFE, said,
            )
            for called, kind, settings, said in (
                ("a function of TensorFlow", "TFOpLambda", {"function": "print"},
                 "print"),
                ("a slice", "SlicingOpLambda", {"function": "load_op_library"},
                 "load_op_library"),
                ("a method", "ClassMethod",
                 {"cls_symbol": "keras.utils.get_file", "method_name": "__call__"},
                 "get_file"),
                ("an operation", "TensorFlowOpLayer",
                 {"node_def": {"name": "w", "op": "WriteFile"}}, "WriteFile"),
                ("a vocabulary", "DenseFeatures",
                 {"feature_columns": [{"vocabulary_file": "/etc/passwd"}]},
                 "/etc/passwd"),
            )
        },
        "a configuration 100,000 deep": (
            hdf5(lambda file: file.attrs.update(
                {"training_config": "[" * 30_000 + "]" * 30_000}
            )),
            MISMATCH, "JSON",
        ),
        "a configuration that is no JSON": (
            hdf5(lambda file: file.attrs.update({"model_config": "{"})),
            MISMATCH, "JSON",
        ),
        "a tree that is its own child": (looping_tree(), MISMATCH, CRASHED),
        "a tree without its signature": (damaged(b"TREE", 0, b"XXXX"), MISMATCH, ""),
        "a tree with 65,535 entries": (damaged(b"TREE", 6, b"\xff\xff"), MISMATCH, ""),
        "a tree whose child is elsewhere": (damaged(b"TREE", 32, last), MISMATCH, ""),
        "a heap without its signature": (damaged(b"HEAP", 0, b"XXXX"), MISMATCH, ""),
        "a heap of 2**64 - 1 bytes": (damaged(b"HEAP", 8, last), MISMATCH, ""),
        "a heap whose free list is elsewhere": (
            damaged(b"HEAP", 16, struct.pack("<Q", 2**40)), MISMATCH, "",
        ),
        "a heap whose data is elsewhere": (damaged(b"HEAP", 24, last), MISMATCH, ""),
        "symbols without their signature": (damaged(b"SNOD", 0, b"XXXX"), MISMATCH, ""),
        "65,535 symbols": (damaged(b"SNOD", 6, b"\xff\xff"), MISMATCH, ""),
        "a symbol's name elsewhere": (damaged(b"SNOD", 8, last), MISMATCH, ""),
        "a symbol's object elsewhere": (damaged(b"SNOD", 16, last), MISMATCH, ""),
        "a dataset larger than any file": (
            hdf5(lambda file: file.create_dataset(
                "w", (2**31,) * 2, "f8", chunks=(1, 1)
            )),
            TOO_LARGE, "RATIO",
        ),
        "a superblock of version 9": (damaged(b"\x89HDF", 8, b"\x09"), MISMATCH, "9"),
        "offsets of 255 bytes": (damaged(b"\x89HDF", 13, b"\xff"), MISMATCH, ""),
        "an end beyond the file": (damaged(b"\x89HDF", 40, last), MISMATCH, "end"),
    }  # fmt: skip
    return {f"h5: {kind}": ("h5", *case) for kind, case in cases.items()}
