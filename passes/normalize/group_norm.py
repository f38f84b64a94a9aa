"""Spell GroupNormalization as exporters of older opsets do: InstanceNormalization over groups.

ONNX gave it two meanings (a scale for each group up to opset 20, for each channel from 21 on),
took back the first, and cannot infer the shape of the second.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.graph import constant_nodes_to_constants, is_standard
from tcompile.core.node_order import toposort


def spell_group_norm(graph: gs.Graph) -> int:
    """Rewrite all of them; returns how many."""
    found = [n for n in graph.nodes if n.op == "GroupNormalization" and is_standard(n)]
    if found:
        constant_nodes_to_constants(graph)
    for node in found:
        _spell(graph, node, *node.inputs)
    if found:
        toposort(graph)
    return len(found)


def _spell(graph: gs.Graph, node: gs.Node, x: gs.Tensor, scale: gs.Tensor, bias: gs.Tensor) -> None:
    groups = int(node.attrs["num_groups"])
    of_groups = graph.opset < 21
    out = node.outputs[0]

    def op(kind: str, tag: str, *inputs: gs.Tensor, **attrs: object) -> gs.Tensor:
        made = gs.Variable(f"{out.name}/{tag}")
        graph.nodes.append(gs.Node(kind, f"{node.name}/{tag}", attrs, list(inputs), [made]))
        return made

    def const(tag: str, values: Any, dtype: Any = np.int64) -> gs.Tensor:
        return gs.Constant(f"{out.name}/{tag}", np.asarray(values, dtype))

    kind = scale.dtype or x.dtype or np.float32
    per_group = (
        (scale, bias)
        if of_groups
        else (const("ones", np.ones(groups), kind), const("zeros", np.zeros(groups), kind))
    )
    apart = op("Reshape", "groups", x, const("apart", [0, groups, -1]))
    normal = op(
        "InstanceNormalization",
        "normal",
        apart,
        *per_group,
        epsilon=float(node.attrs.get("epsilon", 1e-5)),
    )
    if not of_groups:
        ends = const("first", [0]), op("Shape", "width", scale), const("rest", [-1])
        rows = op("Reshape", "channels", normal, op("Concat", "rows", *ends, axis=0))
        column = const("column", [1])
        scaled = op("Mul", "scaled", rows, op("Unsqueeze", "scale", scale, column))
        normal = op("Add", "moved", scaled, op("Unsqueeze", "bias", bias, column))
    dims = op("Shape", "dims", x)
    node.outputs.clear()
    graph.nodes.append(gs.Node("Reshape", node.name, {}, [normal, dims], [out]))
    node.inputs.clear()
    graph.nodes[:] = [n for n in graph.nodes if n is not node]
