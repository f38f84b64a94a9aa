"""What a GPU computes in fp16 or bf16, spelled out in fp32 for a CPU.

A CPU has few kernels for either: ONNX Runtime computes most of an fp16 graph in fp32 and omits the
rounding between two nodes, so that a sum beyond 65504 comes out finite there and infinite on a GPU;
and of a bf16 graph it runs next to nothing.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tcompile.core.graph import is_const
from tcompile.core.op_traits import MOVES

DType = np.dtype[Any]

FLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
BFLOAT16: DType = np.dtype(ml_dtypes.bfloat16)
#: Floats of 16 bits, and ONNX's numbers for them.
HALVES = {FLOAT16: int(onnx.TensorProto.FLOAT16), BFLOAT16: int(onnx.TensorProto.BFLOAT16)}
#: Give values that they were given, or these with another sign: nothing to round.
_MOVES = MOVES | {"Relu", "Neg", "Abs"}


def as_dtype(to: Any) -> DType:
    """An element type that graphsurgeon gives as an ONNX enum value or as a numpy type."""
    kind: DType = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(to) if isinstance(to, int) else to)
    return kind


def half_of(tensor: gs.Tensor) -> DType | None:
    """The type of a tensor of fp16 or bf16; None of any other."""
    if tensor.is_empty() or tensor.dtype is None:
        return None
    kind = as_dtype(tensor.dtype)
    return kind if kind in HALVES else None


def spell_rounding(graph: gs.Graph) -> None:
    """Let every fp16 and bf16 tensor be fp32 and hold what its type can, in place: rounding as a
    GPU does it.

    `y: fp16 = Op(x: fp16)` becomes `y = Cast_fp32(Cast_fp16(Op(x: fp32)))`; ONNX Runtime never
    removes these casts. Weights stay stored as they are. Names stay: `y` is the rounded tensor. A
    graph of fp32 stays as it is.
    """
    front: list[gs.Node] = []
    nodes: list[gs.Node] = []
    wide: dict[str, gs.Variable] = {}
    for tensor in graph.inputs:
        tensor.dtype = FLOAT32 if half_of(tensor) else tensor.dtype
    for node in graph.nodes:
        for i, tensor in enumerate(node.inputs):
            if is_const(tensor) and half_of(tensor):
                if tensor.name not in wide:
                    wide[tensor.name] = gs.Variable(f"{tensor.name}/wide", FLOAT32)
                    front.append(_cast(tensor, wide[tensor.name], onnx.TensorProto.FLOAT))
                node.inputs[i] = wide[tensor.name]
        nodes.append(node)
        for i, tensor in enumerate(node.outputs):
            half = half_of(tensor)
            if half is None:
                continue
            tensor.dtype = FLOAT32
            if node.op in _MOVES and not node.domain:
                continue
            raw, rounded = (gs.Variable(f"{tensor.name}/{end}") for end in ("raw", "half"))
            node.outputs[i] = raw
            nodes.append(_cast(raw, rounded, HALVES[half]))
            nodes.append(_cast(rounded, tensor, onnx.TensorProto.FLOAT))
    graph.nodes[:] = [*front, *nodes]


def _cast(source: gs.Tensor, result: gs.Variable, to: int) -> gs.Node:
    return gs.Node("Cast", f"{result.name}/rounded", {"to": int(to)}, [source], [result])
