"""Transposes that batch and heads were put on one axis for, without that, for a CPU.

PyTorch's newer exporter spells Kᵀ as Reshape [B,h,N,d] → [B·h,N,d], Transpose, Reshape →
[B,h,d,N]. As one Transpose of the last two axes ONNX Runtime takes it into the product.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.core.graph import producer


def merge_turns(graph: gs.Graph) -> int:
    """Rewrite them in place; returns how many."""
    found = 0
    for node in graph.nodes:
        if node.op == "Reshape" and not node.domain:
            found += _merge(node)
    if found:
        graph.cleanup(recurse_subgraphs=False, recurse_functions=False)
    return found


def _merge(last: gs.Node) -> int:
    turn = producer(last.inputs[0])
    if turn is None or turn.op != "Transpose" or turn.attrs.get("perm") != [0, 2, 1]:
        return 0
    first = producer(turn.inputs[0])
    if first is None or first.op != "Reshape" or first.domain:
        return 0
    x, joined, result = first.inputs[0], turn.inputs[0].shape, last.outputs[0].shape
    if x.shape is None or joined is None or result is None or len(x.shape) != 4:
        return 0
    b, h, n, d = x.shape
    # The rows and columns that are turned are whole axes, and so is what comes back.
    if list(joined[1:]) != [n, d] or list(result) != [b, h, d, n]:
        return 0
    last.op, last.attrs, last.inputs = "Transpose", {"perm": [0, 1, 3, 2]}, [x]
    return 1
