"""Spell `RMSNormalization` (ONNX opset 23) as Mul, ReduceMean, Sqrt, Div, Mul, for a TensorRT that
does not know it (before 10.14)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs


def decompose_rms_norm(graph: gs.Graph) -> Mapping[str, frozenset[str]]:
    """Replace every `RMSNormalization` over the last axis, in place.

    y = x / sqrt(mean(x²) + ε) · scale, where the mean is over the last axis.

    Returns:
        For each node replaced, the names of those in its place.
    """
    replaced: dict[str, frozenset[str]] = {}
    nodes: list[gs.Node] = []
    for node in graph.nodes:
        if node.op == "RMSNormalization" and not node.domain and _last_axis(node):
            spelled = _spell(node)
            replaced[node.name] = frozenset(each.name for each in spelled)
            nodes += spelled
        else:
            nodes.append(node)
    graph.nodes[:] = nodes
    return MappingProxyType(replaced)


def _last_axis(node: gs.Node) -> bool:
    axis, shape = node.attrs.get("axis", -1), node.inputs[0].shape
    return axis == -1 or (bool(shape) and axis == len(shape) - 1)


def _spell(node: gs.Node) -> list[gs.Node]:
    x, scale = node.inputs
    (y,) = node.outputs
    node.inputs.clear()
    node.outputs.clear()
    dtype, made = x.dtype, []

    def emit(op: str, name: str, inputs: Sequence[gs.Tensor], **attrs: Any) -> gs.Variable:
        last = name == "Output"
        output = y if last else gs.Variable(f"{node.name}/{name}_out", dtype)
        made.append(
            gs.Node(op, f"{node.name}/{name}", attrs, inputs=list(inputs), outputs=[output])
        )
        return output

    def constant(name: str, value: Any) -> gs.Constant:
        return gs.Constant(f"{node.name}/{name}", value)

    square = emit("Mul", "Square", [x, x])
    # Axes as an input: the operator that is replaced is newer than opset 18.
    axes = constant("axes", np.array([-1], np.int64))
    mean = emit("ReduceMean", "Mean", [square, axes], keepdims=1)
    epsilon = constant("epsilon", np.array(node.attrs.get("epsilon", 1e-5), dtype))
    root = emit("Sqrt", "Root", [emit("Add", "Guard", [mean, epsilon])])
    emit("Mul", "Output", [emit("Div", "Normal", [x, root]), scale])
    return made
