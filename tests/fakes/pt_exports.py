"""Write files with PyTorch, and print as JSON what PyTorch says is in them.

Printed too: what it imports from weights.

    .venv/exporters/bin/python tests/fakes/pt_exports.py FOLDER

Run by tests in an environment that has PyTorch, which this project's own has not.
"""

# mypy: ignore-errors
# PyTorch is not installed where types are checked.

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from torch import _weights_only_unpickler, nn

FOLDER = Path(sys.argv[1])
SAID: dict[str, Any] = {}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Linear(4, 2)
        self.register_buffer("steps", torch.arange(5))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pooled = self.norm(self.conv(image)).mean((2, 3))
        return self.out(pooled) + torch.tensor([1.0, 2.0])


class Saves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)
        self.sizes = {"a": 1}
        self.save = [1, 2]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.sizes["a"] > self.save[0]:
            torch.save(image, "image.pt")
        return self.out(image)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 2)
        self.sizes = {"a": 1}
        self.save = [1, 2]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.out(image) * self.sizes["a"] + self.save[0] + torch.ones([2])


def told(named: dict[str, torch.Tensor]) -> tuple[dict[str, Any], int]:
    """Names, types and shapes; and how many elements there are, shared ones once."""
    tensors = {}
    elements = {}
    for name, tensor in named.items():
        tensors[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        place = id(tensor)
        if tensor.layout == torch.strided and tensor.device.type != "meta":
            place = (
                tensor.untyped_storage()._cdata,
                tensor.storage_offset(),
                tuple(tensor.shape),
                tensor.stride(),
            )
        stored = tensor.values() if tensor.layout != torch.strided else tensor
        elements[place] = stored.numel()
    return tensors, sum(elements.values())


def say(name: str, named: dict[str, torch.Tensor], *, script: bool = False) -> None:
    tensors, parameters = told(named)
    try:
        torch.load(FOLDER / name, weights_only=True)
        weights_only = True
    except (pickle.UnpicklingError, RuntimeError):
        weights_only = False
    SAID[name] = {
        "tensors": tensors,
        "parameters": parameters,
        "torchscript": script,
        "weights_only": weights_only,
    }


def types() -> dict[str, torch.Tensor]:
    weight = nn.Parameter(torch.ones(5, 3))
    noted = nn.Parameter(torch.ones(3))
    noted.note = "kept"
    floats = torch.randn(3, 4)
    scales = torch.tensor([0.1, 0.2, 0.3], dtype=torch.double)
    zeros = torch.zeros(3, dtype=torch.long)
    return {
        "bfloat16": torch.ones(2, dtype=torch.bfloat16),
        "float16": torch.ones(2, dtype=torch.float16),
        "int8": torch.ones(2, dtype=torch.int8),
        "bool": torch.ones(2, dtype=torch.bool),
        "complex64": torch.ones(2, dtype=torch.complex64).conj(),
        "quint8": torch.quantize_per_tensor(floats, 0.1, 3, torch.quint8),
        "qint8": torch.quantize_per_channel(floats, scales, zeros, 0, torch.qint8),
        "quint4x2": torch.quantize_per_channel(
            torch.randn(3, 5), scales.float(), zeros.float(), 0, torch.quint4x2
        ),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(1.5),
        "view": torch.arange(10)[2:8:2],
        "transposed": torch.ones(3, 4).t(),
        "expanded": torch.ones(1).expand(5),
        "noted": noted,
        "tied": weight,
        "tied_again": weight,
        "sparse": torch.eye(3).to_sparse_csr(),
        "meta": torch.empty(3, 4, device="meta"),
    }


def others() -> dict[str, object]:
    return {
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "bytes": b"abc\0",
        "bytearray": bytearray(b"xyz"),
        "set": {1, 2},
        "complex": 1 + 2j,
        "text": "é",
        "numbers": [1, 2.5, 2**80, None, True],
    }


def main() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    state = net.state_dict()
    torch.save(state, FOLDER / "state_dict.pt")
    say("state_dict.pt", state)
    old = {"_use_new_zipfile_serialization": False}
    torch.save(state, FOLDER / "state_dict_legacy.pt", **old)
    say("state_dict_legacy.pt", state)
    torch.serialization.set_crc32_options(False)
    torch.save(state, FOLDER / "state_dict_no_crc.pt")
    torch.serialization.set_crc32_options(True)
    say("state_dict_no_crc.pt", state)

    shared = types()
    torch.save({**shared, **others()}, FOLDER / "types_legacy.pt", **old)
    say("types_legacy.pt", shared)
    newer = {
        "uint16": torch.ones(2, dtype=torch.uint16),
        "float8_e4m3fn": torch.ones(4).to(torch.float8_e4m3fn),
    }
    bare = {"storage": torch.ones(3).untyped_storage()}  # not in the older form
    held = {**shared, **newer, **others(), **bare}
    torch.save(held, FOLDER / "types.pt")
    say("types.pt", {**shared, **newer})
    torch.save(held, FOLDER / "types_protocol_4.pt", pickle_protocol=4)
    say("types_protocol_4.pt", {**shared, **newer})

    optimizer = torch.optim.Adam(net.parameters())
    net(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    kept = {"epoch": 3, "model": state, "optimizer": optimizer.state_dict()}
    torch.save(kept, FOLDER / "checkpoint.pt")
    named = {f"model.{name}": tensor for name, tensor in state.items()}
    for number, slots in kept["optimizer"]["state"].items():
        for name, tensor in slots.items():
            named[f"optimizer.state.{number}.{name}"] = tensor
    say("checkpoint.pt", named)

    torch.save(net, FOLDER / "module.pt")
    say("module.pt", state)
    torch.save(net, FOLDER / "module_legacy.pt", **old)
    say("module_legacy.pt", state)

    traced = torch.jit.trace(net, torch.zeros(1, 3, 8, 8))
    torch.jit.save(traced, FOLDER / "traced.pt", {"labels.txt": "cat\ndog"})
    say("traced.pt", traced.state_dict(), script=True)
    for name, module in (("scripted.pt", Plain()), ("scripted_saves.pt", Saves())):
        scripted = torch.jit.script(module)
        torch.jit.save(scripted, FOLDER / name)
        say(name, scripted.state_dict(), script=True)
    scripted = torch.jit.script(Plain())
    scripted._save_for_lite_interpreter(str(FOLDER / "mobile.pt"))
    say("mobile.pt", scripted.state_dict(), script=True)
    allowed = sorted(_weights_only_unpickler._get_allowed_globals())
    sys.stdout.write(json.dumps({"files": SAID, "allowed": allowed}))


main()
