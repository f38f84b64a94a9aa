"""A file against ONNX's own rules, where what reads it later would stumble; and its legal oddities
spelled as everyone else spells them: sparse weights, outputs that are weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import onnx

from tcompile.core.errors import ModelError

_HINT = "export it again"
#: Bytes that a sparse weight may take once it is dense.
_MOST_DENSE = 1 << 31
#: Values from which on a weight is left out where only shapes matter.
_LARGE = 1024
_KIND = onnx.AttributeProto
#: Kind of an attribute → the field that holds it.
_FIELDS = {
    _KIND.FLOAT: "f",
    _KIND.INT: "i",
    _KIND.STRING: "s",
    _KIND.TENSOR: "t",
    _KIND.GRAPH: "g",
    _KIND.SPARSE_TENSOR: "sparse_tensor",
    _KIND.TYPE_PROTO: "tp",
    _KIND.FLOATS: "floats",
    _KIND.INTS: "ints",
    _KIND.STRINGS: "strings",
    _KIND.TENSORS: "tensors",
    _KIND.GRAPHS: "graphs",
    _KIND.SPARSE_TENSORS: "sparse_tensors",
    _KIND.TYPE_PROTOS: "type_protos",
}


def settle(model: onnx.ModelProto) -> None:
    """Refuse what breaks ONNX's rules, and spell legal oddities plainly, in place.

    Raises:
        ModelError: naming the node or tensor.
    """
    functions = {function_key(f): f for f in model.functions}
    bodies = [model.graph.node, *(f.node for f in model.functions)]
    for node in chain.from_iterable(map(_nodes, bodies)):
        _check_attributes(node)
        function = functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            _check_call(node, function)
            _name_overload(node, function)
    for function in model.functions:
        if function.overload:
            function.name, function.overload = _plain_name(function), ""
    for graph in (model.graph, *_graphs(model.graph.node)):
        graph.initializer.extend(_dense(t, t.values.name) for t in graph.sparse_initializer)
        del graph.sparse_initializer[:]
    for node in chain.from_iterable(map(_nodes, bodies)):
        for attribute in node.attribute:
            if attribute.type == _KIND.SPARSE_TENSOR and node.op_type == "Constant":
                made = _dense(attribute.sparse_tensor, node.output[0])
                attribute.CopyFrom(onnx.helper.make_attribute("value", made))
    _store_texts(model.graph)
    _stored_outputs(model.graph)
    _drop_unknown_types(model.graph)
    _type_outputs(model)


def function_key(function: onnx.FunctionProto) -> tuple[str, str, str]:
    """What a call names: domain, name, and which one of several of that name."""
    return function.domain, function.name, function.overload


def _plain_name(function: onnx.FunctionProto) -> str:
    """A name that no other overload has: what inlines functions knows of no overloads."""
    return f"{function.name}.{function.overload}"


def _name_overload(node: onnx.NodeProto, function: onnx.FunctionProto) -> None:
    if function.overload:
        node.op_type, node.overload = _plain_name(function), ""


def _graphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            inside = [attribute.g] if attribute.HasField("g") else []
            for graph in (*inside, *attribute.graphs):
                yield graph
                yield from _graphs(graph.node)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of graphs inside them."""
    yield from nodes
    for graph in _graphs(nodes):
        yield from graph.node


def _check_attributes(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        own = _FIELDS.get(attribute.type)
        held = [
            f.name
            for f, _ in attribute.ListFields()
            if f.name in _FIELDS.values() and f.name != own
        ]
        if held and attribute.type:  # the oldest files have no types
            kind = _KIND.AttributeType.Name(attribute.type)
            raise ModelError(
                f"attribute '{attribute.name}' of {node.op_type} '{node.name}' is declared {kind} "
                f"and holds {held[0]}",
                hint=_HINT,
            )


def _check_call(node: onnx.NodeProto, function: onnx.FunctionProto) -> None:
    for given, takes, what in (
        (len(node.input), len(function.input), "inputs"),
        (len(node.output), len(function.output), "outputs"),
    ):
        if given > takes:
            raise ModelError(
                f"{node.op_type} '{node.name}' has {given} {what}, its function '{function.name}' "
                f"{takes}",
                hint=_HINT,
            )


def _dense(tensor: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    """A sparse weight with its zeros."""
    dims, values = list(tensor.dims), onnx.numpy_helper.to_array(tensor.values)
    size = math.prod(dims)
    if size * values.itemsize > _MOST_DENSE:
        raise ModelError(f"sparse weights '{name}' of {dims} take more than 2 GiB", hint=_HINT)
    index = onnx.numpy_helper.to_array(tensor.indices).astype(np.int64)
    fits = index.shape in ((len(values),), (len(values), len(dims)))
    if fits and index.ndim == 2:
        fits = bool(((index >= 0) & (index < np.asarray(dims, np.int64))).all())
        index = np.ravel_multi_index(tuple(index.T), dims) if fits else index
    if not fits or (index.size and not 0 <= index.min() <= index.max() < size):
        raise ModelError(f"indices of the sparse weights '{name}' do not fit {dims}", hint=_HINT)
    dense = np.zeros(size, values.dtype)
    dense[index] = values.reshape(-1)
    return onnx.numpy_helper.from_array(dense.reshape(dims), name)


def _store_texts(graph: onnx.GraphProto) -> None:
    """Let texts be weights: the IR writes those as they came, and no others."""
    for node in list(graph.node):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value" and attribute.t.data_type == onnx.TensorProto.STRING:
                graph.initializer.append(attribute.t)
                graph.initializer[-1].name = node.output[0]
                graph.node.remove(node)


def _stored_outputs(graph: onnx.GraphProto) -> None:
    """Let a node give each output that is a weight."""
    outputs = {v.name for v in graph.output}
    for tensor in graph.initializer:
        if tensor.name not in outputs:
            continue
        name = tensor.name
        tensor.name = f"{name}/stored"
        for node in _nodes(graph.node):
            node.input[:] = [tensor.name if n == name else n for n in node.input]
        graph.node.append(onnx.helper.make_node("Identity", [tensor.name], [name], f"{name}/give"))


def _type_outputs(model: onnx.ModelProto) -> None:
    """Infer the types of outputs that have none."""
    for value in (*model.graph.input, *model.graph.output):
        type_ = value.type.tensor_type.elem_type
        if type_ not in onnx.TensorProto.DataType.values():
            raise ModelError(f"'{value.name}' is of unknown type {type_}", hint=_HINT)
    for value in model.graph.output:
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            raise ModelError(
                f"output '{value.name}' is a {kind.removesuffix('_type')}, not a tensor",
                hint="export it without that output",
            )
    untyped = [v for v in model.graph.output if not v.type.tensor_type.elem_type]
    if not untyped:
        return
    found = onnx.shape_inference.infer_shapes(without_weights(model)).graph.output
    types = {v.name: v.type for v in found}
    for value in untyped:
        if not types[value.name].tensor_type.elem_type:
            raise ModelError(f"the type of output '{value.name}' is not known", hint=_HINT)
        value.type.CopyFrom(types[value.name])


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The file with an input in place of each large weight."""
    graph = model.graph
    large = [t for t in graph.initializer if math.prod(t.dims) > _LARGE]
    left = {t.name for t in large}
    bare = onnx.helper.make_graph(
        graph.node,
        graph.name or "graph",
        [
            *(v for v in graph.input if v.name not in left),
            *(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in large),
        ],
        graph.output,
        [t for t in graph.initializer if t.name not in left],
        value_info=graph.value_info,
    )
    return onnx.helper.make_model(
        bare,
        opset_imports=model.opset_import,
        functions=model.functions,
        ir_version=model.ir_version,
    )


def _drop_unknown_types(graph: onnx.GraphProto) -> None:
    """Forget what the file says of tensors in between if it names a type that there is not."""
    kept = [
        v
        for v in graph.value_info
        if not v.type.HasField("tensor_type")
        or v.type.tensor_type.elem_type in onnx.TensorProto.DataType.values()
    ]
    if len(kept) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)
