"""A part of a graph as a graph of its own: what it reads from outside becomes its inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx_graphsurgeon as gs

from tcompile.core.graph import is_const, producer
from tcompile.core.node_order import toposort


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
    return toposort(part.cleanup(remove_unused_graph_inputs=True))


def repeated(graph: gs.Graph, times: int) -> gs.Graph:
    """A graph several times over, each copy with inputs and outputs of its own.

    What runs so shares the cost of starting a runtime, and as the inputs are others nothing can be
    computed once for all copies. Constants are shared.
    """
    whole = graph.copy()
    nodes, inputs, outputs = list(whole.nodes), list(whole.inputs), list(whole.outputs)
    for number in range(1, times):
        new: dict[str, gs.Tensor] = {}

        def renamed(
            tensor: gs.Tensor, number: int = number, new: dict[str, gs.Tensor] = new
        ) -> gs.Tensor:
            if not tensor.name or is_const(tensor):
                return tensor
            if tensor.name not in new:
                name = f"{tensor.name}/copy{number}"
                new[tensor.name] = gs.Variable(name, tensor.dtype, tensor.shape)
            return new[tensor.name]

        for node in nodes:
            whole.nodes.append(
                gs.Node(
                    node.op,
                    f"{node.name}/copy{number}",
                    dict(node.attrs),
                    [renamed(t) for t in node.inputs],
                    [renamed(t) for t in node.outputs],
                    node.domain,
                )
            )
        whole.inputs += [renamed(t) for t in inputs]
        whole.outputs += [renamed(t) for t in outputs]
    return toposort(whole)
