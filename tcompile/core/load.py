"""Reading a model file as data: nothing in it is executed, and nothing outside its folder is read.

A bad file is one `ModelError` that names the file and the fault.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from tcompile.core.errors import ModelError, UsageError
from tcompile.core.files import in_words, regular_file
from tcompile.core.protobuf import is_model, read_thin
from tcompile.core.well_formed import function_key, settle

#: The oldest opset that is read as it is; those from `OLDEST_CONVERTED` on are converted to it.
OLDEST_OPSET = 13
OLDEST_CONVERTED = 7
_HINT = "export it again, or check that the download is complete"


def load(path: str | Path, *, weights: bool = True) -> onnx.ModelProto:
    """Read an ONNX file with its external data.

    Args:
        weights: False: check all, and leave out large weights and external data.

    Raises:
        UsageError: no such file.
        ModelError: not ONNX, truncated, unsupported opset, tensors that do not hold what their
            shapes say, functions that call each other too often, or external data that is missing,
            too short or outside the model's folder.
    """
    path = Path(path)
    model, parts = _read(path)
    if not model.graph.node or not model.opset_import or not model.ir_version:
        raise ModelError("not an ONNX file, or an empty one", where=str(path), hint=_HINT)
    _check_opset(model, path)
    check_calls(model, path)
    held = {place: length for place, (_, length) in parts.items()}
    _check_sizes(model, path, held | _check_external_data(model, path))
    _check_names(model, path)
    if weights or model.graph.sparse_initializer:  # which are written out in full
        _fill(model, parts, path)
    try:
        settle(model)
    except ModelError as error:
        raise ModelError(error.what, where=str(path), hint=error.hint) from error
    _check_names(model, path)
    return model


def _fill(model: onnx.ModelProto, parts: Mapping[int, tuple[int, int]], path: Path) -> None:
    """Read what the structure lacks: external data, and the file's own large weights."""
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
        with path.open("rb") as stream:
            for place, (start, length) in parts.items():
                stream.seek(start)
                model.graph.initializer[place].raw_data = stream.read(length)
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ModelError(
            f"external data cannot be read: {' '.join(str(error).split())}",
            where=str(path),
            hint="external data must be plain files beside the model, not links",
        ) from error


def read_structure(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file without its external data and without the large weights in it.

    Raises:
        UsageError: no such file, or something else than a file.
        ModelError: not ONNX, truncated, or larger than an ONNX file can be.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[onnx.ModelProto, Mapping[int, tuple[int, int]]]:
    """The structure, and where in the file the weights are that it does not have: `Thin.weights`.

    Reading the file as a whole would take its weights twice.
    """
    path = regular_file(path, hint="give the path of an .onnx file")
    if not _is_unicode(str(path)):
        raise UsageError(
            "has a name that is not Unicode, which not every library takes",
            where=str(path),
            hint="rename it",
        )
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            if not is_model(stream, size):
                raise ValueError("not a model")
            if size > _MOST_PROTOBUF:
                raise ModelError(
                    f"has {in_words(size)}, and no ONNX file has more than 2 GiB",
                    where=str(path),
                    hint="export it with its weights in a file beside it (external data)",
                )
            thin = read_thin(stream, size)
        model = onnx.ModelProto()
        model.ParseFromString(thin.message)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise ModelError("not an ONNX file, or truncated", where=str(path), hint=_HINT) from error
    return model, thin.weights


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def names_in(path: str | Path) -> Iterator[str]:
    """Names of the nodes of a file that `load` reads, and of what they give."""
    for node in read_structure(path).graph.node:
        yield node.name
        yield from node.output


#: Bytes that one protobuf message can have.
_MOST_PROTOBUF = (1 << 31) - 1


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


def _check_external_data(model: onnx.ModelProto, path: Path) -> dict[int, int]:
    """Hold the references to external data against the files; nothing of them is read.

    Returns:
        Bytes of external data by the tensor's place in `_tensors`.
    """
    folder = path.parent.resolve()
    held: dict[int, int] = {}
    files: dict[Path, int] = {}
    for place, tensor in enumerate(_tensors(model)):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        fields = {entry.key: entry.value for entry in tensor.external_data}
        data = _external_file(tensor.name, fields.get("location", ""), folder, path)
        size = files.setdefault(data, data.stat().st_size)
        try:
            offset = int(fields.get("offset", 0))
            length = int(fields.get("length", size - offset))
        except ValueError:
            offset, length = -1, -1
        if offset < 0 or length < 0 or offset + length > size:
            raise ModelError(
                f"external data file '{fields['location']}' is too short for '{tensor.name}'",
                where=str(path),
                hint=_HINT,
            )
        held[place] = length
    # Tied weights may share a part of a file; many that do would fill any memory.
    if sum(held.values()) > _SHARED * sum(files.values()) + _SMALL:
        raise ModelError(
            f"its {len(held)} tensors of external data would take {in_words(sum(held.values()))}: "
            f"they overlap in files of {in_words(sum(files.values()))}",
            where=str(path),
            hint=_HINT,
        )
    return held


#: How often the bytes of external files may be used, and bytes that may be used more often.
_SHARED, _SMALL = 4, 64 << 20


def _external_file(name: str, location: str, folder: Path, path: Path) -> Path:
    """The file that holds a tensor's data, inside the model's folder."""
    try:
        data = (folder / location).resolve()
        found = data.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"weights of '{name}' lie in a file whose name no file system allows",
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
            f"weights of '{name}' point outside the model's folder: '{location}'",
            where=str(path),
            hint="external data must lie beside the model",
        )
    if not found:
        raise ModelError(
            f"external data file '{location}' is missing",
            where=str(path),
            hint="copy it together with the .onnx file",
        )
    return data


def _check_sizes(model: onnx.ModelProto, path: Path, external: Mapping[int, int]) -> None:
    """Tensors must hold as much as their dims say, before anything allocates by those dims.

    Args:
        external: bytes of data that is not in the message by the tensor's place in `_tensors`.
    """
    for place, tensor in enumerate(_tensors(model)):
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
        count = math.prod(tensor.dims)
        if kind in _PACKED:  # an entry of the field holds one byte
            needs = entries = -(-count * _PACKED[kind] // 8)
        else:
            needs = count * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
            entries = count * (2 if kind in _COMPLEX else 1)
        if place in external:
            holds, unit = external[place], "bytes"
        elif tensor.HasField("raw_data"):
            holds, unit = len(tensor.raw_data), "bytes"
        else:
            field = onnx.helper.tensor_dtype_to_field(kind)
            needs, holds, unit = entries, len(getattr(tensor, field)), "values"
        if needs != holds:
            raise ModelError(
                f"weights of '{tensor.name}' hold {holds} {unit}, their shape "
                f"{list(tensor.dims)} needs {needs}",
                where=str(path),
                hint=_HINT,
            )


def check_calls(model: onnx.ModelProto, path: Path) -> None:
    """Refuse functions that call each other so often that the graph without them is no graph.

    A few functions that call the next one several times make any number of nodes.
    """
    bodies = {function_key(f): f.node for f in model.functions}
    known: dict[tuple[str, str, str], tuple[int, int]] = {}
    for start in bodies:
        pending = [start]
        while pending:  # a function after those that it calls
            key = pending[-1]
            inside = {k for node in _each(bodies[key]) if (k := _called(node)) in bodies}
            rest = [k for k in inside if k not in known]
            if len(pending) > len(bodies):
                raise ModelError(f"function '{key[1]}' is recursive", where=str(path), hint=_HINT)
            if rest:
                pending.append(rest[0])
                continue
            known[pending.pop()] = _spread(bodies[key], known)
    if not known:
        return
    nodes, size = _spread(model.graph.node, known)
    if nodes > _MOST_NODES or size > max(_MOST_PROTOBUF, 2 * model.graph.ByteSize()):
        raise ModelError(
            "its functions call each other so often that the graph without them has "
            f"{nodes} nodes and {in_words(size)}",
            where=str(path),
            hint=_HINT,
        )


#: Nodes of a model once every call of a function is replaced by its body.
_MOST_NODES = 1_000_000


def _spread(
    nodes: Iterable[onnx.NodeProto], known: Mapping[tuple[str, str, str], tuple[int, int]]
) -> tuple[int, int]:
    """Nodes and bytes of a body once every call is replaced by what it calls."""
    count = size = 0
    for node in _each(nodes):
        inside, held = known.get(_called(node), (1, node.ByteSize()))
        count, size = count + inside, size + held
    return count, size


def _called(node: onnx.NodeProto) -> tuple[str, str, str]:
    return node.domain, node.op_type, node.overload


def _each(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Every node, those of graphs inside nodes too."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _each(graph.node)


def _check_names(model: onnx.ModelProto, path: Path) -> None:
    """Names must be text, and two weights of one name would silently become one of them."""
    for node in model.graph.node:
        for name in (node.name, node.op_type, node.domain, *node.input, *node.output):
            if isinstance(name, bytes):  # protobuf gives what is not UTF-8 as it is
                raise ModelError(
                    f"not a valid ONNX graph: the name {name!r} is not text in UTF-8",
                    where=str(path),
                    hint=_HINT,
                )
    counts = Counter(tensor.name for tensor in model.graph.initializer)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ModelError(
            f"there are several weights named '{twice[0]}'", where=str(path), hint=_HINT
        )


#: Bits of an element of types that share bytes.
_PACKED = {
    getattr(onnx.TensorProto, name): bits
    for name, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if hasattr(onnx.TensorProto, name)
}
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
