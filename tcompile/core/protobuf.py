"""ONNX files as protobuf messages, read part by part: the weights of a graph are left out.

Parts of a message add up, in any order, so that a graph may be written, read and added to without
its weights in memory.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

# Numbers of fields in onnx.proto, and the tags of those that are written: all with their length.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
MODEL_GRAPH, GRAPH_INITIALIZER, MODEL_FUNCTIONS = b"\x3a", b"\x2a", b"\xca\x01"
#: Fields of ModelProto, GraphProto and their wire types: 0 a number, 2 bytes after their length.
_MODEL_FIELDS = {1: 0, 5: 0} | dict.fromkeys((2, 3, 4, 6, _GRAPH, 8, 14, 20, 25, 26), 2)
_GRAPH_FIELDS = dict.fromkeys((1, 2, _INITIALIZER, 10, 11, 12, 13, 14, 15, 16), 2)
#: Bytes of fields that are of another wire type.
_FIXED = {1: 8, 5: 4}
#: Bytes of a tag and a length at most.
_HEAD = 20
#: Fields that are looked at to tell a model, and bytes of a weight from which it is left out.
_LOOK, _LARGE = 64, 1 << 12
#: Numbers that fields of later versions of ONNX may have lie below this.
_LATER = 100


@dataclass(frozen=True)
class Thin:
    """A model without its large weights.

    Attributes:
        message: the ModelProto.
        weights: initializer, by its place → where its raw data lies in the file: start, length.
    """

    message: bytes
    weights: Mapping[int, tuple[int, int]]


def is_model(stream: BinaryIO, size: int) -> bool:
    """Tell whether a file may hold a ModelProto, by its first fields; nothing else is read."""
    return size > 0 and _looks_like(_MODEL_FIELDS, stream, size)


def read_thin(stream: BinaryIO, size: int) -> Thin:
    """Read a model without its large weights.

    Raises:
        ValueError: it is not a protobuf message, or cut off.
    """
    rest, graph = io.BytesIO(), io.BytesIO()
    weights: dict[int, tuple[int, int]] = {}
    place = 0
    for field, head, end in _fields(stream, 0, size):
        if field != _GRAPH:
            rest.write(head + stream.read(end - stream.tell()))
            continue
        for part, inner, stop in _fields(stream, stream.tell(), end):
            if part != _INITIALIZER:
                graph.write(inner + stream.read(stop - stream.tell()))
                continue
            tensor = io.BytesIO()
            for name, tag, last in _fields(stream, stream.tell(), stop):
                start = stream.tell()
                if name == _RAW_DATA and last - start >= _LARGE:
                    weights[place] = start, last - start
                else:
                    tensor.write(tag + stream.read(last - start))
            framed = tensor.getvalue()
            graph.write(GRAPH_INITIALIZER + varint(len(framed)) + framed)
            place += 1
    body = graph.getvalue()
    return Thin(rest.getvalue() + MODEL_GRAPH + varint(len(body)) + body, weights)


def varint(number: int) -> bytes:
    """A number in protobuf's form."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(stream: BinaryIO) -> int:
    """The number that comes next; 0 at the end."""
    number = 0
    for shift in range(0, 64, 7):
        byte = (stream.read(1) or b"\0")[0]
        number |= (byte & 0x7F) << shift
        if not byte & 0x80:
            break
    return number


def _fields(stream: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield each field's number, the bytes before its contents, and where these end. The stream
    stands at the contents."""
    place = start
    while place < end:
        stream.seek(place)
        ahead = stream.read(_HEAD)
        there, ahead = len(ahead), ahead.ljust(_HEAD, b"\0")  # zeros behind the end, as above
        tag, at = _varint_at(ahead, 0)
        wire, length = tag & 7, 0
        if wire == 0:
            _, at = _varint_at(ahead, at)
        elif wire == 2:
            length, at = _varint_at(ahead, at)
        elif wire in _FIXED:
            length = _FIXED[wire]
        else:
            raise ValueError(f"no field has wire type {wire}")
        contents = place + min(at, there)
        stop = contents + length
        if not tag >> 3 or stop > end:
            raise ValueError("cut off")
        stream.seek(contents)
        yield tag >> 3, ahead[:at], stop
        place = stop


def _varint_at(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and where it ends."""
    number = data[at]
    if number < 0x80:
        return number, at + 1
    number &= 0x7F
    for shift in range(7, 64, 7):
        at += 1
        number |= (data[at] & 0x7F) << shift
        if data[at] < 0x80:
            break
    return number, at + 1


def _looks_like(fields: Mapping[int, int], stream: BinaryIO, end: int) -> bool:
    try:
        for count, (field, head, stop) in enumerate(_fields(stream, stream.tell(), end)):
            wire = head[0] & 7
            later = max(fields) < field < _LATER  # of a version that does not exist yet
            if fields.get(field, wire if later else None) != wire:
                return False
            graph = fields is _MODEL_FIELDS and field == _GRAPH
            if graph and not _looks_like(_GRAPH_FIELDS, stream, stop):
                return False
            if count == _LOOK:
                break
    except ValueError:
        return False
    return True
