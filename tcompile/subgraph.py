"""A part of a graph as a graph of its own: what it reads from outside becomes its inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx_graphsurgeon as gs

from tcompile.ir import is_const, producer


def needed_nodes(tensors: Iterable[gs.Tensor], without: Collection[str] = ()) -> set[str]:
    """Names of the nodes that tensors are computed by.

    Args:
        without: nodes that are left out, and with them what only they need.
    """
    found: set[str] = set()
    pending = [producer(t) for t in tensors]
    while pending:
        node = pending.pop()
        if node is None or node.name in found or node.name in without:
            continue
        found.add(str(node.name))
        pending.extend(producer(t) for t in node.inputs)
    return found


def extract(graph: gs.Graph, nodes: Collection[str], outputs: Sequence[str]) -> gs.Graph:
    """A new graph of some of a graph's nodes; the given one is left as it is.

    Args:
        nodes: their names. Tensors that none of them makes and that are no constants become inputs,
            in the order in which they are read.
        outputs: names of tensors that the new graph gives.
    """
    part = graph.copy()
    kept = [n for n in part.nodes if n.name in nodes]
    made = {o.name for n in kept for o in n.outputs}
    inputs: dict[str, gs.Tensor] = {}
    for tensor in (t for n in kept for t in n.inputs):
        if tensor.name and tensor.name not in made and not is_const(tensor):
            inputs.setdefault(tensor.name, tensor)
    tensors = part.tensors()
    for node in part.nodes:
        if node.name not in nodes:
            node.inputs.clear()
            node.outputs.clear()
    part.nodes[:] = kept
    part.inputs, part.outputs = list(inputs.values()), [tensors[name] for name in outputs]
    called = {n.op for n in kept}
    part.functions = [f for f in part.functions if f.name in called]
    return part.cleanup(remove_unused_graph_inputs=True).toposort()
