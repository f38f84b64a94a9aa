"""Reading a model file as data: nothing in it is executed, and nothing outside its folder is read.

A bad file is one `ModelError` that names the file and the fault.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from tcompile.core.errors import ModelError, UsageError
from tcompile.core.well_formed import settle

#: The oldest opset that is read as it is; those from `OLDEST_CONVERTED` on are converted to it.
OLDEST_OPSET = 13
OLDEST_CONVERTED = 7
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
        model = onnx.load_model(str(path), "protobuf", load_external_data=False)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise ModelError("not an ONNX file, or truncated", where=str(path), hint=_HINT) from error
    if not model.graph.node or not model.opset_import or not model.ir_version:
        raise ModelError("not an ONNX file, or an empty one", where=str(path), hint=_HINT)
    _check_opset(model, path)
    _check_external_data(model, path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ModelError(
            f"external data cannot be read: {' '.join(str(error).split())}",
            where=str(path),
            hint="external data must be plain files beside the model, not links",
        ) from error
    _check_sizes(model, path)
    try:
        settle(model)
    except ModelError as error:
        raise ModelError(error.what, where=str(path), hint=error.hint) from error
    _check_names(model, path)
    return model


def names_in(path: str | Path) -> Iterator[str]:
    """Names of the nodes of a file that `load` reads, and of what they give."""
    for node in onnx.load_model(str(path), "protobuf", load_external_data=False).graph.node:
        yield node.name
        yield from node.output


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the default ONNX domain that the model imports (0 when it imports none)."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def _check_opset(model: onnx.ModelProto, path: Path) -> None:
    opset, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if not OLDEST_CONVERTED <= opset <= newest:
        raise ModelError(
            f"ONNX opset {opset} is not supported",
            where=str(path),
            hint=f"export with an opset from {OLDEST_CONVERTED} to {newest}; 17 or newer is best",
        )


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: of the graph, of graphs inside it, and of local functions."""
    yield from _in_graph(model.graph)
    for function in model.functions:
        yield from _in_nodes(function.node)


def _in_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _in_sparse(graph.sparse_initializer)
    yield from _in_nodes(graph.node)


def _in_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("sparse_tensor"):
                yield from _in_sparse([attribute.sparse_tensor])
            yield from _in_sparse(attribute.sparse_tensors)
            if attribute.HasField("g"):
                yield from _in_graph(attribute.g)
            for sub in attribute.graphs:
                yield from _in_graph(sub)


def _in_sparse(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for tensor in tensors:
        yield tensor.values
        yield tensor.indices


def _check_external_data(model: onnx.ModelProto, path: Path) -> None:
    folder = path.parent.resolve()
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        fields = {entry.key: entry.value for entry in tensor.external_data}
        location = fields.get("location", "")
        try:
            data = (folder / location).resolve()
            found = data.is_file()
        except (OSError, ValueError) as error:
            raise ModelError(
                f"weights of '{tensor.name}' lie in a file whose name no file system allows",
                where=str(path),
                hint=_HINT,
            ) from error
        if not location or not data.is_relative_to(folder):
            if location and (folder / location).is_symlink() and found:
                raise ModelError(
                    f"external data file '{location}' is a link out of the model's folder",
                    where=str(path),
                    hint=f"copy the files themselves, e.g. cp -rL '{path.parent}' a-copy",
                )
            raise ModelError(
                f"weights of '{tensor.name}' point outside the model's folder: '{location}'",
                where=str(path),
                hint="external data must lie beside the model",
            )
        if not found:
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


def _check_sizes(model: onnx.ModelProto, path: Path) -> None:
    """Tensors must hold as much as their dims say, before anything allocates by those dims."""
    for tensor in _tensors(model):
        kind = tensor.data_type
        if kind not in onnx.TensorProto.DataType.values() or not kind:
            raise ModelError(f"'{tensor.name}' is of unknown type {kind}", where=str(path))
        if tensor.HasField("segment"):
            raise ModelError(
                f"'{tensor.name}' is stored in segments, which ONNX's own readers do not take",
                where=str(path),
                hint="save it in one piece",
            )
        if any(dim < 0 for dim in tensor.dims):
            raise ModelError(
                f"'{tensor.name}' has a negative dim: {list(tensor.dims)}", where=str(path)
            )
        if kind in _PACKED:
            continue
        count = math.prod(tensor.dims)
        if tensor.HasField("raw_data"):
            width = onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
            needs, holds, unit = count * width, len(tensor.raw_data), "bytes"
        else:
            field = onnx.helper.tensor_dtype_to_field(kind)
            parts = 2 if kind in (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128) else 1
            needs, holds, unit = count * parts, len(getattr(tensor, field)), "values"
        if needs != holds:
            raise ModelError(
                f"weights of '{tensor.name}' hold {holds} {unit}, their shape "
                f"{list(tensor.dims)} needs {needs}",
                where=str(path),
                hint=_HINT,
            )


def _check_names(model: onnx.ModelProto, path: Path) -> None:
    """Two weights of one name would silently become one of them."""
    counts = Counter(tensor.name for tensor in model.graph.initializer)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ModelError(
            f"there are several weights named '{twice[0]}'", where=str(path), hint=_HINT
        )


_PACKED = {
    getattr(onnx.TensorProto, name)
    for name in ("INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2")
    if hasattr(onnx.TensorProto, name)
}
