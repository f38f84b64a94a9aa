"""A graph as a flat list of steps with shapes: token ops inlined, the batch a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx_graphsurgeon as gs
from onnx.helper import tensor_dtype_to_np_dtype

from tcompile.core.domain import DOMAIN
from tcompile.core.errors import ModelError
from tcompile.core.graph import attr, is_const, value
from tcompile.plugins.ops import OPS

#: Any that all bodies can be written in.
_OPSET = 18
_ATTRIBUTES = (
    "axis",
    "axes",
    "perm",
    "group",
    "transA",
    "transB",
    "batch_dims",
    "equation",
    "q_num_heads",
    "kv_num_heads",
    "num_heads",
    "keepdims",
)


@dataclass(frozen=True)
class Value:
    """A tensor: `floating` ones take the device's item size, others `itemsize` bytes."""

    name: str
    shape: tuple[int, ...]
    constant: bool = False
    floating: bool = True
    itemsize: int = 4

    @property
    def count(self) -> int:
        """How many elements it has."""
        return prod(self.shape)


@dataclass(frozen=True)
class Step:
    """One standard ONNX operator; `reads` and `writes` leave out what is empty."""

    name: str
    op: str
    reads: tuple[Value, ...]
    writes: tuple[Value, ...]
    attributes: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Steps:
    """The steps of a graph in the order in which they run, and the names of its outputs."""

    steps: tuple[Step, ...]
    outputs: frozenset[str]


def steps_of(graph: gs.Graph, batch: int) -> Steps:
    """The steps of a graph for so many images.

    Args:
        graph: sorted topologically, shapes known; token ops are replaced by their bodies.
        batch: what a free batch is taken to be.

    Raises:
        ModelError: a tensor whose shape is not known.
    """
    seen: dict[str, Value] = {}
    found: list[Step] = []
    for node in graph.nodes:
        reads = _values(node.inputs, batch, seen)
        writes = _values(node.outputs, batch, seen)
        if node.domain == DOMAIN:
            numbers = tuple((k, int(value(v)[0])) for k, v in sorted(node.attrs.items()))
            found.extend(_inlined(str(node.name), str(node.op), reads, writes, numbers))
        else:
            kept = {k: attr(node, k) for k in _ATTRIBUTES if k in node.attrs}
            found.append(Step(str(node.name), str(node.op), reads, writes, kept))
    return Steps(tuple(found), frozenset(t.name for t in graph.outputs))


def _values(tensors: Sequence[gs.Tensor], batch: int, seen: dict[str, Value]) -> tuple[Value, ...]:
    found = []
    for tensor in tensors:
        name = tensor.name
        if not name:
            continue
        known = seen.get(name)
        if known is None:
            known = seen[name] = _value(tensor, batch)
        found.append(known)
    return tuple(found)


def _value(tensor: gs.Tensor, batch: int) -> Value:
    if tensor.shape is None:
        if not tensor.outputs:  # one of several outputs, which nobody reads
            return Value(tensor.name, (0,))
        raise ModelError(
            "a tensor has no shape, so that no latency can be modelled", where=tensor.name
        )
    dims = tuple(_dim(d, batch) for d in tensor.shape)
    return _typed(tensor.name, dims, is_const(tensor), tensor.dtype)


def _dim(dim: int | str, batch: int) -> int:
    if isinstance(dim, str):
        return batch * int(dim.partition("*")[2] or 1)
    return int(dim)


def _typed(name: str, dims: tuple[int, ...], constant: bool, dtype: Any) -> Value:
    if dtype is None or isinstance(dtype, int):  # unknown, or bfloat16 and smaller
        return Value(name, dims, constant)
    kind = np.dtype(dtype)
    return Value(name, dims, constant, kind.kind == "f", min(kind.itemsize, 4))


Numbers = tuple[tuple[str, int], ...]


def _inlined(
    name: str, op: str, reads: tuple[Value, ...], writes: tuple[Value, ...], numbers: Numbers
) -> list[Step]:
    """The body's steps, its inputs and outputs under the names they have outside."""
    signature = tuple((v.shape, v.floating, v.itemsize) for v in reads)
    outer = {f"i{i}": v for i, v in enumerate(reads)} | {f"o{i}": v for i, v in enumerate(writes)}

    def rename(v: Value) -> Value:
        if v.name in outer:
            return outer[v.name]
        return Value(f"{name}/{v.name}", v.shape, v.constant, v.floating, v.itemsize)

    return [
        Step(
            f"{name}/{s.name}",
            s.op,
            tuple(map(rename, s.reads)),
            tuple(map(rename, s.writes)),
            s.attributes,
        )
        for s in _body(op, signature, numbers)
    ]


@lru_cache(maxsize=4096)
def _body(
    op: str, signature: tuple[tuple[tuple[int, ...], bool, int], ...], numbers: Numbers
) -> tuple[Step, ...]:
    """The steps of a token op's body on inputs i0, i1, … of these shapes."""
    inlined = _inlined_body(op, numbers)
    model = onnx.ModelProto()
    model.CopyFrom(inlined)
    for given, (shape, floating, itemsize) in zip(model.graph.input, signature, strict=True):
        integer = onnx.TensorProto.BOOL if itemsize == 1 else onnx.TensorProto.INT64
        kind = onnx.TensorProto.FLOAT if floating else integer
        given.CopyFrom(onnx.helper.make_tensor_value_info(given.name, kind, shape))
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    known = {}
    for info in (*graph.input, *graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        dtype = tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
        dims = tuple(int(d.dim_value) for d in tensor.shape.dim)
        known[info.name] = _typed(info.name, dims, False, dtype)
    found = []
    for i, node in enumerate(graph.node):
        if node.op_type == "Constant":
            for out in node.output:
                old = known.get(out, Value(out, ()))
                known[out] = Value(out, old.shape, True, old.floating, old.itemsize)
            continue
        kept = {
            a.name: onnx.helper.get_attribute_value(a)
            for a in node.attribute
            if a.name in _ATTRIBUTES
        }
        reads = tuple(known.get(n, Value(n, ())) for n in node.input if n)
        writes = tuple(known.get(n, Value(n, ())) for n in node.output if n)
        found.append(Step(f"{node.op_type}_{i}", node.op_type, reads, writes, kept))
    return tuple(found)


@lru_cache(maxsize=4096)
def _inlined_body(op: str, numbers: Numbers) -> onnx.ModelProto:
    spec = next(o for o in OPS if o.name == op)
    given = [onnx.helper.make_empty_tensor_value_info(f"i{i}") for i in range(len(spec.inputs))]
    gives = [onnx.helper.make_empty_tensor_value_info(f"o{i}") for i in range(len(spec.outputs))]
    call = onnx.helper.make_node(
        op, [v.name for v in given], [v.name for v in gives], domain=DOMAIN
    )
    for key, number in numbers:
        tensor = onnx.numpy_helper.from_array(np.asarray([number], np.int64), key)
        call.attribute.append(onnx.helper.make_attribute(key, tensor))
    model = onnx.helper.make_model(
        onnx.helper.make_graph([call], op, given, gives),
        functions=[spec.function(_OPSET)],
        opset_imports=[onnx.helper.make_opsetid("", _OPSET), onnx.helper.make_opsetid(DOMAIN, 1)],
    )
    return onnx.inliner.inline_local_functions(model)
