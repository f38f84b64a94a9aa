"""Writing a graph to an ONNX file tensor by tensor, so that no second copy of the weights is made.

A protobuf message may be written in parts: the graph without its weights first, then one
`initializer` field after the other. Beyond what one protobuf may hold, weights go to a file beside.
Bodies of token ops come last: a file without them is the beginning of this one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from tcompile.core.domain import DOMAIN
from tcompile.core.drafts import scratch
from tcompile.core.errors import ModelError
from tcompile.core.graph import is_const, opset_imports, tensors_of
from tcompile.core.protobuf import (
    GRAPH_INITIALIZER,
    MODEL_FUNCTIONS,
    MODEL_GRAPH,
    read_varint,
    varint,
)

#: Weights beyond this go beside the model: a protobuf must stay under 2 GiB.
INLINE_LIMIT = 1 << 30
_ALIGNMENT = 64
#: Bytes below which a tensor stays inline.
_SMALL = 1024


@contextmanager
def saved(graph: gs.Graph) -> Iterator[Path]:
    """A graph as a file, in a folder of its own that is deleted afterwards."""
    with scratch() as folder:
        path = folder / "model.onnx"
        save(graph, path)
        yield path


def without_weights(graph: gs.Graph, metadata: dict[str, str] | None = None) -> onnx.ModelProto:
    """The model's protobuf with every initializer left out."""
    tensors = tensors_of(graph).values()
    ends = {t.name for t in (*graph.inputs, *graph.outputs)}
    known = [t for t in tensors if not is_const(t) and t.name not in ends and t.name]
    proto = onnx.helper.make_graph(
        [OnnxExporter.export_node(n) for n in graph.nodes],
        graph.name or "tcompile",
        [OnnxExporter.export_value_info_proto(t, True) for t in graph.inputs],
        [OnnxExporter.export_value_info_proto(t, True) for t in graph.outputs],
        value_info=[
            OnnxExporter.export_value_info_proto(t, False)
            for t in known
            if t.dtype is not None and t.shape is not None
        ],
    )
    model = onnx.helper.make_model(
        proto,
        producer_name="tcompile",
        opset_imports=opset_imports(graph),
        functions=[OnnxExporter.export_function(f) for f in graph.functions],
        ir_version=graph.ir_version or 10,
    )
    for key, text in (metadata or {}).items():
        model.metadata_props.add(key=key, value=text)
    return model


def save(graph: gs.Graph, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write the graph as one file, or with `PATH.data` beside it where it is too large."""
    path = Path(path)
    model = without_weights(graph, metadata)
    body = model.graph.SerializeToString()
    model.ClearField("graph")
    bodies = onnx.ModelProto(functions=[f for f in model.functions if f.domain == DOMAIN])
    others = [f for f in model.functions if f.domain != DOMAIN]
    model.ClearField("functions")
    model.functions.extend(others)
    head, tail = model.SerializeToString(), bodies.SerializeToString()
    constants = [t for t in tensors_of(graph).values() if is_const(t)]
    total = sum(int(t._values.nbytes) for t in constants)
    beside = path.with_name(f"{path.name}.data") if total > INLINE_LIMIT else None
    with _named(path), path.open("wb") as stream:
        stream.write(head + MODEL_GRAPH)
        if beside is None:
            # Each tensor is made twice, for its length and for its bytes; never two at once.
            size = len(body) + sum(_framed(tensor_proto(t).ByteSize()) for t in constants)
            stream.write(varint(size) + body)
            for tensor in constants:
                _write(stream, tensor_proto(tensor).SerializeToString())
            stream.write(tail)
            return
        with _named(beside), beside.open("wb") as data:
            stubs = [external(t, data, beside.name).SerializeToString() for t in constants]
        stream.write(varint(len(body) + sum(_framed(len(s)) for s in stubs)) + body)
        for stub in stubs:
            _write(stream, stub)
        stream.write(tail)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an error of writing say which file it is about: that of a full disk does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def without_bodies(path: str | Path) -> int:
    """Return how many bytes of a file that `save` wrote are the model without bodies of token ops.

    Raises:
        ModelError: it is not such a file.
    """
    end = 0
    with Path(path).open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        while stream.tell() < size:
            tag = read_varint(stream)
            if tag & 7 == 0:
                read_varint(stream)
            elif tag & 7 == 2:
                length = read_varint(stream)
                stream.seek(length, 1)
            else:
                raise ModelError("is not an ONNX file that tcompile wrote", where=str(path))
            if varint(tag) != MODEL_FUNCTIONS:
                end = stream.tell()
    return end


def tensor_proto(tensor: gs.Constant) -> onnx.TensorProto:
    """A constant as ONNX has it, its values included."""
    proto: onnx.TensorProto = OnnxExporter.export_tensor_proto(tensor)
    return proto


def external(tensor: gs.Constant, data: BinaryIO, location: str) -> onnx.TensorProto:
    """Write a constant's raw data to a file beside; returns the tensor that refers to it. A small
    one stays inline.

    Args:
        location: the file's name, from the folder of the model.
    """
    proto = tensor_proto(tensor)
    if not proto.HasField("raw_data") or len(proto.raw_data) < _SMALL:
        return proto
    data.write(b"\0" * (-data.tell() % _ALIGNMENT))
    stub = onnx.TensorProto(
        name=proto.name,
        data_type=proto.data_type,
        dims=proto.dims,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    fields = {"location": location, "offset": data.tell(), "length": len(proto.raw_data)}
    for key, value in fields.items():
        stub.external_data.add(key=key, value=str(value))
    data.write(proto.raw_data)
    return stub


def _framed(length: int) -> int:
    """Bytes of an initializer field that holds a tensor of this length."""
    return len(GRAPH_INITIALIZER) + len(varint(length)) + length


def _write(stream: BinaryIO, tensor: bytes) -> None:
    stream.write(GRAPH_INITIALIZER + varint(len(tensor)))
    stream.write(tensor)
