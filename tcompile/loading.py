"""Reading a model file as data: nothing in it is executed, and nothing outside its folder is read.

A bad file is one `ModelError` that names the file and the fault (DESIGN 5.12).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from tcompile.errors import ModelError, UsageError

OLDEST_OPSET = 13
_HINT = "export it again, or check that the download is complete"


def load(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data.

    Raises:
        UsageError: no such file.
        ModelError: not ONNX, truncated, unsupported opset, or external data that is missing, too
            short or outside the model's folder.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a directory, not a model file" if path.is_dir() else "no such file"
        raise UsageError(what, where=str(path), hint="give the path of an .onnx file")
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise ModelError("not an ONNX file, or truncated", where=str(path), hint=_HINT) from error
    if not model.graph.node or not model.opset_import or not model.ir_version:
        raise ModelError("not an ONNX file, or an empty one", where=str(path), hint=_HINT)
    _check_opset(model, path)
    _check_external_data(model, path)
    onnx.load_external_data_for_model(model, str(path.parent))
    _check_initializers(model, path)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default ONNX domain that the model imports (0 when it imports none)."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _check_opset(model: onnx.ModelProto, path: Path) -> None:
    opset, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ModelError(
            f"ONNX opset {opset} is not supported",
            where=str(path),
            hint=f"export with an opset from {OLDEST_OPSET} to {newest}; 17 or newer is best",
        )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for sub in attribute.graphs:
                yield from _tensors(sub)


def _check_external_data(model: onnx.ModelProto, path: Path) -> None:
    folder = path.parent.resolve()
    for tensor in _tensors(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        fields = {entry.key: entry.value for entry in tensor.external_data}
        location = fields.get("location", "")
        data = (folder / location).resolve()
        if not location or not data.is_relative_to(folder):
            raise ModelError(
                f"weights of '{tensor.name}' point outside the model's folder: '{location}'",
                where=str(path),
                hint="external data must lie beside the model",
            )
        if not data.is_file():
            raise ModelError(
                f"external data file '{location}' is missing",
                where=str(path),
                hint="copy it together with the .onnx file",
            )
        try:
            offset, length = int(fields.get("offset", 0)), int(fields.get("length", 0))
        except ValueError:
            offset, length = -1, -1
        if offset < 0 or length < 0 or offset + length > data.stat().st_size:
            raise ModelError(
                f"external data file '{location}' is too short for '{tensor.name}'",
                where=str(path),
                hint=_HINT,
            )


def _check_initializers(model: onnx.ModelProto, path: Path) -> None:
    """Raw data must be as long as its dims say, before anything allocates by those dims."""
    for tensor in _tensors(model.graph):
        if not tensor.HasField("raw_data"):
            continue
        try:
            width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        except (KeyError, TypeError, ValueError):
            continue
        count = 1
        for dim in tensor.dims:
            count *= dim
        packed = tensor.data_type in _PACKED
        if not packed and count * width != len(tensor.raw_data):
            raise ModelError(
                f"weights of '{tensor.name}' hold {len(tensor.raw_data)} bytes, "
                f"their shape {list(tensor.dims)} needs {count * width}",
                where=str(path),
                hint=_HINT,
            )


_PACKED = {
    getattr(onnx.TensorProto, name)
    for name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2")
    if hasattr(onnx.TensorProto, name)
}
