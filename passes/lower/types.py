"""Element types of an operator's outputs, given its inputs': enough to type function
bodies and to check a converted graph. Shapes play no part; `complete` fills in both by inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import InternalError
from tcompile.core.rounding import BFLOAT16, FLOAT16, FLOAT32, DType, as_dtype
from tcompile.passes.normalize.infer import infer

Key = tuple[str, str]

_FLOATS = {FLOAT16, BFLOAT16, FLOAT32, np.dtype(np.float64)}
_BOOL, _INT64, _UINT8 = np.dtype(np.bool_), np.dtype(np.int64), np.dtype(np.uint8)

_TO_BOOL = {
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "And",
    "Or",
    "Xor",
    "Not",
    "IsNaN",
    "IsInf",
}
_TO_INT64 = {"Shape", "Size", "NonZero", "ArgMax", "ArgMin"}
#: Operators that take floats of several types at once.
_MIXED = {
    "Cast",
    "CastLike",
    "Pow",
    "Resize",
    "QuantizeLinear",
    "DequantizeLinear",
    "BatchNormalization",
}
#: The input that an output's type follows, where it is not the first.
_FOLLOWS = {"Where": 1, "CastLike": 1, "OneHot": 2}


class TypeClashError(ValueError):
    """An operator reads floats of different types, or its result cannot be told."""


def function_key(node: gs.Node) -> Key:
    """Return what a call and its function have in common: (domain, name)."""
    return (node.domain or "", node.op)


def output_types(
    node: gs.Node, inputs: Sequence[DType | None], functions: Mapping[Key, gs.Function]
) -> list[DType | None]:
    """The element type of each output of a node.

    Args:
        node: an operator, or a call of one of `functions`.
        inputs: type of each input; None for an omitted one.
        functions: the model-local functions.

    Raises:
        TypeClashError: floats of different types meet where ONNX wants one type.
    """
    function = functions.get(function_key(node))
    if function is not None:
        return _function_types(function, inputs, functions)
    floats = {kind for kind in inputs if kind in _FLOATS}
    if len(floats) > 1 and node.op not in _MIXED:
        raise TypeClashError(f"'{node.name}' ({node.op}) reads {sorted(map(str, floats))}")
    if node.op == "Constant":
        kinds: list[DType | None] = [_constant_type(node)]
    elif node.op in _TO_BOOL:
        kinds = [_BOOL]
    elif node.op in _TO_INT64:
        kinds = [_INT64]
    elif node.op == "Cast":
        kinds = [_cast_type(node)]
    elif node.op == "ConstantOfShape":
        filler = node.attrs.get("value")
        kinds = [FLOAT32 if filler is None else np.dtype(filler.dtype)]
    elif node.op == "TopK":
        kinds = [inputs[0], _INT64]
    elif node.op == "QuantizeLinear":
        kinds = [_UINT8 if len(inputs) < 3 else inputs[2]]
    elif node.op == "DequantizeLinear":
        kinds = [inputs[1]]  # of the scale
    else:
        kinds = [inputs[_FOLLOWS.get(node.op, 0)]] if inputs else [None]
    return kinds + [kinds[0]] * (len(node.outputs) - len(kinds))


def _function_types(
    function: gs.Function, inputs: Sequence[DType | None], functions: Mapping[Key, gs.Function]
) -> list[DType | None]:
    known: dict[str, DType | None] = {}
    for tensor in function.tensors().values():
        if isinstance(tensor, gs.Constant):
            known[tensor.name] = np.dtype(tensor.dtype)
    known.update({t.name: kind for t, kind in zip(function.inputs, inputs, strict=False)})
    for node in function.nodes:
        kinds = [None if t.is_empty() else known.get(t.name) for t in node.inputs]
        for tensor, kind in zip(node.outputs, output_types(node, kinds, functions), strict=False):
            known[tensor.name] = kind
    return [known.get(tensor.name) for tensor in function.outputs]


def _constant_type(node: gs.Node) -> DType | None:
    for name, value in node.attrs.items():
        if name in ("value_float", "value_floats"):
            return FLOAT32
        if name in ("value_int", "value_ints"):
            return _INT64
        if name == "value" and isinstance(value, gs.Constant):
            return as_dtype(value.dtype)
    return None


def _cast_type(node: gs.Node) -> DType:
    to = node.attrs["to"]
    if isinstance(to, gs.Node.AttributeRef):
        raise TypeClashError(f"'{node.name}' casts to a type that its caller names")
    return as_dtype(to)


def complete(graph: gs.Graph) -> None:
    """Note the type and shape of every tensor, in place, by inference where they are missing.

    Raises:
        ModelError: shapes contradict each other.
        InternalError: inference cannot tell the type of a tensor.
    """
    variables = [t for t in graph.tensors().values() if isinstance(t, gs.Variable)]
    if all(t.dtype is not None and t.shape is not None for t in variables):
        return
    known = [(tensor, tensor.dtype, tensor.shape) for tensor in variables]
    infer(graph, symbolic=True)
    for tensor, dtype, shape in known:
        # What was noted stays: inference does not see through every function.
        tensor.dtype = tensor.dtype if dtype is None else dtype
        tensor.shape = tensor.shape if shape is None else shape
    for tensor in variables:
        if tensor.dtype is None and not tensor.is_empty():
            raise InternalError(f"the element type of '{tensor.name}' cannot be told")
