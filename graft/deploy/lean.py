"""A packed model without its activation map, for those who ask for answers only.

In: the bytes of `model.onnx`. Out: the bytes of the same graph without the output `activation` and the nodes that
`graft.deploy.activation` appended for it. ONNX Runtime computes every node of a graph whatever is asked for, and behind
a small network that is read at several depths the map took a tenth of the time.

The file is walked as the wire format of Protocol Buffers says, because serving needs no onnx package. Cost: one copy of
the bytes. Not covered: what is no ONNX file comes back as it is, for the runtime to refuse.
"""

from __future__ import annotations

from collections.abc import Iterator

from graft.deploy.opening import ACTIVATION

OWN = b"graft_activation_"  # how the appended nodes are called
GRAPH = 7  # of ModelProto
NODE, OUTPUT = 1, 12  # of GraphProto
OUTPUTS, NAME = 2, 3  # of NodeProto
VALUE = 1  # of ValueInfoProto: its name
VARINT, LONG, BYTES, SHORT = 0, 1, 2, 5


def without_activation(model: bytes) -> bytes:
    """The model that puts out everything else."""
    pieces: list[bytes | memoryview] = []
    try:
        for number, whole, content in _fields(memoryview(model)):
            if number == GRAPH:
                left = b"".join(each for kind, each, inner in _fields(content) if not _of_map(kind, inner))
                pieces += [bytes([GRAPH << 3 | BYTES]), _as_varint(len(left)), left]
            else:
                pieces.append(whole)
    except (IndexError, ValueError):
        return model
    return b"".join(pieces)


def _of_map(number: int, content: memoryview) -> bool:
    """Whether a field of the graph belongs to the map."""
    if number == OUTPUT:
        return any(kind == VALUE and name == ACTIVATION.encode() for kind, _, name in _fields(content))
    if number != NODE:
        return False
    names = {(kind, bytes(name)) for kind, _, name in _fields(content) if kind in (OUTPUTS, NAME)}
    return (OUTPUTS, ACTIVATION.encode()) in names or any(
        kind == NAME and name.startswith(OWN) for kind, name in names
    )


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """The number, the whole and the content of each field. Raises IndexError or ValueError where it is no message."""
    at = 0
    while at < len(message):
        begin = at
        tag, at = _varint(message, at)
        kind, length = tag & 7, 0
        if kind == VARINT:
            _, at = _varint(message, at)
        elif kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (LONG, SHORT):
            length = 8 if kind == LONG else 4
        else:
            raise ValueError
        if at + length > len(message):
            raise IndexError
        at += length
        yield tag >> 3, message[begin:at], message[at - length : at]


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins there, seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _as_varint(value: int) -> bytes:
    bytes_ = bytearray()
    while value > 127:
        bytes_.append(value & 127 | 128)
        value >>= 7
    return bytes([*bytes_, value])
