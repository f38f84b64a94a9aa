"""The nodes that must stay in fp32 when the rest of a graph goes to fp16 or bf16, and why.

fp16 has 11 bits and ends at 65504: squares overflow from 256 on, an epsilon of 1e-6 is gone, and
integers are exact only up to 2048. bf16 ends just below fp32 and has 8 bits, in which integers are
exact up to 256. The softmax and the products of attention are not among these: fused kernels
accumulate in fp32 by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from tcompile.core.op_traits import MOVES
from tcompile.core.rounding import BFLOAT16, FLOAT16, FLOAT32, DType, as_dtype
from tcompile.passes.lower.types import Key, TypeClashError, function_key, output_types

FLOAT16_MAX = float(np.finfo(np.float16).max)
BFLOAT16_MAX = float(ml_dtypes.finfo(BFLOAT16).max)  # type: ignore[no-untyped-call]
_TINY = float(np.finfo(np.float16).tiny)

#: Overflow or cancel in fp16, or exist in no runtime in fp16.
_SINGLE = {
    "Pow",
    "Sqrt",
    "Reciprocal",
    "Exp",
    "Log",
    "Softplus",
    "Sin",
    "Cos",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceProd",
    "LpNormalization",
    "BatchNormalization",
    "CumSum",
    "TopK",
    "Range",
    "Resize",
    "Upsample",
    "GridSample",
    "Constant",
    "ConstantOfShape",
    "EyeLike",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
}
#: Results by which something is divided or multiplied: rounding them to fp16 rounds everything.
_FACTORS = {"Pow", "Sqrt", "Reciprocal", "Exp", "Log", "ReduceL1", "ReduceL2", "ReduceSumSquare"}
#: Change no value: they stay in the precision of what they move.
_MOVES = MOVES | {"Dropout", "Neg", "Abs"}
#: Reductions and bounds: in fp32 when what they take is.
_FOLLOWS = _MOVES | {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "Max", "Min", "Clip"}
_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Floor", "Ceil", "Round", "Mod"}
#: Where a value below -65504 only means "minus infinity" or "no bound".
_TO_SOFTMAX = _MOVES | {"Add", "Sub", "Where", "Cast", "Mul", "Div"}


class Delicate:
    """Says of each node of a graph, asked in the graph's order, whether it stays in fp32.

    Args:
        names: nodes that somebody already knows must stay.
        functions: the model-local functions.
        half: what the rest goes to, fp16 or bf16.
        opset: of the graph: which operators take bf16 depends on it.
    """

    def __init__(
        self,
        names: frozenset[str],
        functions: Mapping[Key, gs.Function],
        half: DType = FLOAT16,
        opset: int | None = None,
    ) -> None:
        self._names = names
        self._functions = functions
        self._half = half
        self._opset = opset or onnx.defs.onnx_opset_version()
        self._single: set[str] = set()  # tensors that are fp32
        self._exact: set[str] = set()  # tensors that hold integers as floats
        self._factors: set[str] = set()  # tensors that scale others

    def stays(self, node: gs.Node) -> bool:
        """Tell whether the node computes in fp32. Remembers what follows for later nodes."""
        floats = [t for t in node.inputs if isinstance(t, gs.Variable) and t.dtype == FLOAT32]
        exact = self._is_exact(node, floats)
        stays = (
            node.name in self._names
            or exact
            or node.op in _SINGLE
            or self._follows(node, floats)
            or (node.op in {"Mul", "Div"} and any(t.name in self._factors for t in floats))
            or (node.op == "Div" and node.inputs[1].name in self._exact)  # a count has no bound
            or _feeds_a_variance(node)
            or (self._half == FLOAT16 and any(not fits(t, node) for t in node.inputs))
            or not self._takes_half(node)
        )
        outputs = {t.name for t in node.outputs if t.dtype == FLOAT32}
        if stays:
            self._single |= outputs
        if exact:
            self._exact |= outputs
        carried = node.op in _FOLLOWS or node.op in {"Add", "Cast"}
        if stays and (
            node.op in _FACTORS or (carried and any(t.name in self._factors for t in floats))
        ):
            self._factors |= outputs
        return stays

    def _follows(self, node: gs.Node, floats: list[gs.Variable]) -> bool:
        return node.op in _FOLLOWS and bool(floats) and all(t.name in self._single for t in floats)

    def _is_exact(self, node: gs.Node, floats: list[gs.Variable]) -> bool:
        if node.op == "Cast":
            source = node.inputs[0].dtype
            kind = None if source is None else np.dtype(source).kind
            return kind in {"i", "u"} and as_dtype(node.attrs["to"]) == FLOAT32
        return (
            node.op in _ARITHMETIC | _FOLLOWS
            and bool(floats)
            and all(t.name in self._exact for t in floats)
        )

    def _takes_half(self, node: gs.Node) -> bool:
        """Tell whether an operator takes floats of 16 bits, and whether a call of a function still
        types when its floats are."""
        function = self._functions.get(function_key(node))
        if function is None:
            # Operators of a foreign domain are known to take fp32, the type they were made for.
            return not node.domain and (self._half != BFLOAT16 or takes_bf16(node.op, self._opset))
        inner = {n.op for n in function.nodes if not n.domain}
        if self._half == BFLOAT16 and not all(takes_bf16(op, self._opset) for op in inner):
            return False
        kinds = [
            None if t.is_empty() else self._half if t.dtype == FLOAT32 else as_dtype(t.dtype)
            for t in node.inputs
        ]
        try:
            results = output_types(node, kinds, self._functions)
        except TypeClashError:
            return False
        return None not in results


@lru_cache(maxsize=512)
def takes_bf16(op: str, opset: int) -> bool:
    """Tell whether an operator of ONNX takes and gives bf16 where it takes floats."""
    try:
        schema = onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return False
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    floats = [types for types in allowed.values() if "tensor(float)" in types]
    return all("tensor(bfloat16)" in types for types in floats)


def fits(tensor: gs.Tensor, node: gs.Node) -> bool:
    """Tell whether a constant may be given to `node` in fp16; always true of what is no fp32
    constant.

    Too large unless clamping is harmless; too small where it is a number on its own (an epsilon):
    a weight of 1e-9 among others may become zero.
    """
    if not isinstance(tensor, gs.Constant) or tensor.dtype != FLOAT32:
        return True
    values = peek(tensor)
    size = largest(values)
    if size > FLOAT16_MAX and not clamps(node):
        return False
    return not (values.size == 1 and 0 < size < _TINY)


def largest(values: npt.NDArray[Any]) -> float:
    """The largest magnitude among the finite values; 0 where there is none."""
    size = float(max(values.max(initial=0), -values.min(initial=0)))
    if np.isfinite(size):
        return size
    return float(np.abs(values[np.isfinite(values)]).max(initial=0))


def peek(constant: gs.Constant) -> npt.NDArray[Any]:
    """A constant's value, without keeping what had to be read for it: weights are large."""
    stored = constant._values
    return np.asarray(stored.load() if isinstance(stored, LazyValues) else stored)


def clamps(node: gs.Node, depth: int = 6) -> bool:
    """Tell whether a constant of the node beyond fp16 may be clamped: a bound, or a softmax's
    mask."""
    if node.op in {"Clip", "Softmax"}:
        return True
    if node.op not in _TO_SOFTMAX or depth == 0:
        return False
    users = [user for output in node.outputs for user in output.outputs]
    return bool(users) and all(clamps(user, depth - 1) for user in users)


def _feeds_a_variance(node: gs.Node) -> bool:
    """Tell whether the node is part of mean((x - mean(x))²) or mean(x²), up to the square."""
    if node.op == "Mul":
        return node.inputs[0] is node.inputs[1] and _all_reduced(node)
    if node.op == "Sub":
        return any(_is_square(user) for user in node.outputs[0].outputs)
    if node.op == "ReduceMean":
        users = node.outputs[0].outputs
        return any(
            user.op == "Sub" and user.inputs[0] is node.inputs[0] and _feeds_a_variance(user)
            for user in users
        )
    return False


def _is_square(node: gs.Node) -> bool:
    if node.op == "Mul":
        return node.inputs[0] is node.inputs[1] and _all_reduced(node)
    return node.op == "Pow" and _all_reduced(node)


def _all_reduced(node: gs.Node) -> bool:
    users = node.outputs[0].outputs
    return bool(users) and all(user.op in {"ReduceMean", "ReduceSum"} for user in users)
