"""Bytes of ONNX models that no exporter would write, put together field by field."""

from __future__ import annotations


def varint(number: int) -> bytes:
    """A number as protobuf has it: negative ones take ten bytes."""
    number &= (1 << 64) - 1
    content = b""
    while number >= 0x80:
        content += bytes([number & 0x7F | 0x80])
        number >>= 7
    return content + bytes([number])


def field(number: int, value: bytes | int) -> bytes:
    """One field: a varint, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(*fields: tuple[int, bytes | int]) -> bytes:
    return b"".join(field(number, value) for number, value in fields)


OPSET = message((2, 17))
GRAPH = message((2, b"graph"))
ENTRY = message((1, b"key"), (2, b"value"))


def model(graph: bytes = GRAPH, *fields: tuple[int, bytes | int]) -> bytes:
    """A model with this graph, and more fields behind it."""
    return message((1, 8), (7, graph), (8, OPSET), *fields)


def tensor(
    dims: tuple[int, ...] = (2,),
    dtype: int = 1,
    *fields: tuple[int, bytes | int],
    name: bytes = b"w",
) -> bytes:
    return message(*((1, dim) for dim in dims), (2, dtype), *fields, (8, name))


def initializer(*args: object, **kwargs: object) -> bytes:
    """A graph with one initializer, as ``tensor`` makes it."""
    return field(5, tensor(*args, **kwargs))  # type: ignore[arg-type] # passed on


def value(*type_fields: tuple[int, bytes | int], name: bytes = b"x") -> bytes:
    """A ``ValueInfoProto`` of a type."""
    return message((1, name), (2, message(*type_fields)))


def nested_graphs(depth: int) -> bytes:
    """A graph within a graph, by an ``If``, so many times."""
    graph = GRAPH
    for _ in range(depth):
        attribute = message((1, b"then_branch"), (6, graph))
        graph = field(1, message((4, b"If"), (5, attribute)))
    return graph


def nested_types(depth: int) -> bytes:
    """A sequence of sequences, so many times."""
    held = b""
    for _ in range(depth):
        held = field(4, field(1, held))
    return held
