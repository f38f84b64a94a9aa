"""A half-precision graph spelled so that ONNX Runtime rounds where a GPU does.

A CPU has few kernels for fp16: ONNX Runtime computes most of an fp16 graph in fp32 and leaves out
the rounding between two nodes, so that a sum beyond 65504 comes out finite there and infinite on a
GPU. Here every fp16 result is rounded by casts of its own, which it never removes.
"""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from tcompile.core.graph import is_const
from tcompile.core.op_traits import MOVES
from tcompile.passes.lower.types import FLOAT16, FLOAT32

#: Give values that they were given, or these with another sign: nothing to round.
_MOVES = MOVES | {"Relu", "Neg", "Abs"}


def spell_rounding(graph: gs.Graph) -> None:
    """Let every fp16 tensor be fp32 and hold what fp16 can, in place.

    `y: fp16 = Op(x: fp16)` becomes `y = Cast_fp32(Cast_fp16(Op(x: fp32)))`. Weights stay stored as
    fp16. Names stay: `y` is the rounded tensor. A graph without fp16 stays as it is.
    """
    front: list[gs.Node] = []
    nodes: list[gs.Node] = []
    wide: dict[str, gs.Variable] = {}
    for tensor in graph.inputs:
        tensor.dtype = FLOAT32 if tensor.dtype == FLOAT16 else tensor.dtype
    for node in graph.nodes:
        for i, tensor in enumerate(node.inputs):
            if is_const(tensor) and tensor.dtype == FLOAT16:
                if tensor.name not in wide:
                    wide[tensor.name] = gs.Variable(f"{tensor.name}/wide", FLOAT32)
                    front.append(_cast(tensor, wide[tensor.name], onnx.TensorProto.FLOAT))
                node.inputs[i] = wide[tensor.name]
        nodes.append(node)
        for i, tensor in enumerate(node.outputs):
            if tensor.dtype != FLOAT16:
                continue
            tensor.dtype = FLOAT32
            if node.op in _MOVES and not node.domain:
                continue
            raw, half = (gs.Variable(f"{tensor.name}/{end}") for end in ("raw", "half"))
            node.outputs[i] = raw
            nodes.append(_cast(raw, half, onnx.TensorProto.FLOAT16))
            nodes.append(_cast(half, tensor, onnx.TensorProto.FLOAT))
    graph.nodes[:] = [*front, *nodes]


def _cast(source: gs.Tensor, result: gs.Variable, to: int) -> gs.Node:
    return gs.Node("Cast", f"{result.name}/rounded", {"to": int(to)}, [source], [result])
