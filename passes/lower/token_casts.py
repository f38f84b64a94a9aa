"""Casts around token ops, moved into their bodies: a plugin reads and writes fp16 and bf16 itself.

A body that sums is of fp32, so that lowering to fp16 leaves its calls between casts. Runtimes fuse
those into the kernels of the body. Around a plugin each would be a kernel, and tokens would cross
memory at twice the width.
"""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from tcompile.core.domain import DOMAIN
from tcompile.core.graph import bypass, cast_node
from tcompile.core.rounding import FLOAT16, FLOAT32, HALVES, DType, as_dtype
from tcompile.plugins.ops import OPS
from tcompile.plugins.spec import TokenOp


def move_casts(graph: gs.Graph, half: DType = FLOAT16) -> int:
    """Let calls take and give fp16 where all calls of an op lie between casts from and to it.

    In place; the body of such an op casts instead, and what it computes is the same. Only `data`
    tensors change (`plugins.spec.KINDS`), all of a call together.

    Args:
        half: bf16 in place of fp16, of a graph in that.

    Returns:
        How many calls changed.
    """
    bodies = {f.name: f for f in graph.functions if f.domain == DOMAIN}
    outputs = {t.name for t in graph.outputs}
    changed = 0
    for op in OPS:
        calls = [n for n in graph.nodes if n.domain == DOMAIN and n.op == op.name]
        if not calls or op.name not in bodies:
            continue
        if not all(_between_casts(call, op, outputs, half) for call in calls):
            continue
        for call in calls:
            _take_half(graph, call, op, half)
        _cast_inside(bodies[op.name], op, half)
        changed += len(calls)
    if changed:
        read = {t.name for n in graph.nodes for t in n.inputs} | outputs
        # Casts to fp32 that nothing reads any more, and those that are bypassed.
        dead = [n for n in graph.nodes if n.op == "Cast" and not _read(n, read)]
        for node in dead:
            node.inputs.clear()
            node.outputs.clear()
        graph.nodes[:] = [n for n in graph.nodes if n.outputs]
    return changed


def _between_casts(call: gs.Node, op: TokenOp, outputs: set[str], half: DType) -> bool:
    for i in _data(op)[0]:
        maker = call.inputs[i].inputs[0] if call.inputs[i].inputs else None
        if maker is None or maker.op != "Cast" or maker.inputs[0].dtype != half:
            return False
        if call.inputs[i].dtype != FLOAT32:
            return False
    return all(
        call.outputs[i].name not in outputs
        and call.outputs[i].outputs
        and all(_casts_to(user, half) for user in call.outputs[i].outputs)
        for i in _data(op)[1]
    )


def _casts_to(node: gs.Node, half: DType) -> bool:
    return node.op == "Cast" and as_dtype(node.attrs["to"]) == half


def _take_half(graph: gs.Graph, call: gs.Node, op: TokenOp, half: DType) -> None:
    takes, gives = _data(op)
    for i in takes:
        call.inputs[i] = call.inputs[i].inputs[0].inputs[0]
    for i in gives:
        made = call.outputs[i]
        made.dtype = half
        for cast in list(made.outputs):
            made = call.outputs[i]
            bypass(graph, cast, made)


def _cast_inside(body: gs.Function, op: TokenOp, half: DType) -> None:
    takes, gives = _data(op)
    first, last = [], []
    for i in takes:
        given = body.inputs[i]
        wide = gs.Variable(f"{given.name}_wide")
        for node in body.nodes:
            for j, tensor in enumerate(node.inputs):
                if tensor.name == given.name:
                    node.inputs[j] = wide
        first.append(cast_node(given, wide, onnx.TensorProto.FLOAT))
    for i in gives:
        made = body.outputs[i]
        wide = gs.Variable(f"{made.name}_wide")
        for node in body.nodes:
            for tensors in (node.inputs, node.outputs):
                for j, tensor in enumerate(tensors):
                    if tensor.name == made.name:
                        tensors[j] = wide
        last.append(cast_node(wide, made, HALVES[half]))
    body.nodes[:] = [*first, *body.nodes, *last]


def _data(op: TokenOp) -> tuple[list[int], list[int]]:
    """Places of the inputs and outputs that have the type of the tokens."""
    takes = [i for i, t in enumerate(op.takes) if t.kind == "data"]
    return takes, [i for i, t in enumerate(op.gives) if t.kind == "data"]


def _read(node: gs.Node, read: set[str]) -> bool:
    return any(t.name in read for t in node.outputs)
