"""Matrix products of fp32, spelled as sums, for a GPU whose engines have none.

TensorRT-RTX 1.7 refuses to build any product of fp32 matrices for compute capability 7.5 ("FP32
GEMM is not supported"). In a graph of fp16 those left are of scores and of merging, and must not be
rounded. As Mul and ReduceSum they are exact, and Myelin makes one kernel of the two, which keeps
nothing but the result in memory: no tensor cores, no more traffic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.domain import DOMAIN
from tcompile.passes.lower.types import FLOAT32


def spell_products(graph: gs.Graph) -> Mapping[str, frozenset[str]]:
    """Replace every `MatMul` of fp32, in place, also in the bodies of token ops.

    y[…, m, n] = Σ_k a[…, m, k] · b[…, k, n], of tensors with two axes or more.

    Returns:
        For each node of the graph that was replaced, the names of those in its place.
    """
    replaced: dict[str, frozenset[str]] = {}
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        ranks = [len(t.shape) for t in node.inputs if t.shape is not None]
        wanted = node.op == "MatMul" and not node.domain and node.inputs[0].dtype == FLOAT32
        if not wanted or len(ranks) != 2 or min(ranks) < 2:
            nodes.append(node)
            continue
        made = _spell(node, ranks[1], graph.opset)
        replaced[node.name] = frozenset(each.name for each in made)
        nodes += made
    graph.nodes[:] = nodes
    for body in graph.functions:
        if body.domain == DOMAIN:
            # Their products are all of [B, ., .], and of fp32: what they sum is.
            spelled = [
                _spell(node, 3, body.opset) if node.op == "MatMul" else [node]
                for node in body.nodes
            ]
            body.nodes[:] = [node for each in spelled for node in each]
    return MappingProxyType(replaced)


def _spell(node: gs.Node, rank: int, opset: int) -> list[gs.Node]:
    """The nodes in place of one; `rank` is the second operand's."""
    a, b = node.inputs
    (y,) = node.outputs
    node.inputs.clear()
    node.outputs.clear()
    name = node.name or f"{y.name}/MatMul"
    made: list[gs.Node] = []

    def emit(
        op: str, inputs: Sequence[gs.Tensor], output: gs.Variable | None = None, **attrs: Any
    ) -> gs.Variable:
        place = f"{name}/{op}_{len(made)}"
        if output is None:
            output = gs.Variable(f"{place}_out", a.dtype)
        made.append(gs.Node(op, place, attrs, list(inputs), [output]))
        return output

    def over(
        op: str, x: gs.Tensor, axis: int, output: gs.Variable | None = None, **attrs: Any
    ) -> gs.Variable:
        if opset < 13:
            return emit(op, [x], output, axes=[axis], **attrs)
        stored = gs.Constant(f"{name}/{op}_{len(made)}_axes", np.array([axis], np.int64))
        holder = gs.Variable(stored.name, np.int64)
        made.append(gs.Node("Constant", f"{stored.name}/Constant", {"value": stored}, [], [holder]))
        return emit(op, [x, holder], output, **attrs)

    order = [*range(rank - 2), rank - 1, rank - 2]
    rows = over("Unsqueeze", a, -2)
    columns = over("Unsqueeze", emit("Transpose", [b], perm=order), -3)
    over("ReduceSum", emit("Mul", [rows, columns]), -1, y, keepdims=0)
    return made
