"""Nodes that compute what another one computes already.

Scores recompute products of the attention beside it. A runtime that fuses attention
pays for that; one that does not, such as ONNX Runtime on a CPU, finds the twins and computes them
once. A step that is timed by itself must leave them out as well.
"""

from __future__ import annotations

from collections.abc import Container

import onnx_graphsurgeon as gs

from tcompile.core.graph import is_const, replace_uses


def without_common_subexpressions(graph: gs.Graph, written: Container[str]) -> gs.Graph:
    """The graph with one of each set of nodes of the same operator, attributes and inputs; the one
    that was there before anything was written. The given graph is left as it is.

    Args:
        written: names of the nodes that the reduction wrote.
    """
    made = graph.copy()
    made.toposort()
    asked = {o.name for o in made.outputs}
    first: dict[str, gs.Node] = {}
    nodes = sorted(made.nodes, key=lambda n: n.name in written)
    # What was written may read what was there, never the other way round up to the site, so going
    # through the old ones first keeps every input's twin known before it is read.
    for node in nodes:
        key = f"{node.domain}:{node.op}{_attributes(node)}({','.join(map(_name, node.inputs))})"
        twin = first.setdefault(key, node)
        if twin is not node and not any(o.name in asked for o in node.outputs):
            for old, new in zip(node.outputs, twin.outputs, strict=True):
                replace_uses(old, new)
            node.outputs.clear()
    made.nodes[:] = [n for n in made.nodes if n.outputs]
    return made.cleanup(remove_unused_graph_inputs=False).toposort()


def _name(tensor: gs.Tensor) -> str:
    if is_const(tensor) and tensor.values.size <= 8:
        return f"{tensor.values.dtype}{tensor.values.tolist()}"
    return str(tensor.name)


def _attributes(node: gs.Node) -> str:
    def text(given: object) -> str:
        if isinstance(given, gs.Constant):
            return str(given.values.tolist())
        return str(given)

    return "{" + ",".join(f"{k}={text(v)}" for k, v in sorted(node.attrs.items())) + "}"
