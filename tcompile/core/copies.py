"""Copies of graphs: new nodes and tensors, the same weights and attributes.

`Graph.copy` of onnx_graphsurgeon does the same in five times as long: it makes every tensor twice,
and sets each field through hooks that keep lists of readers in step. It is left what this does not
look at: sub-graphs in attributes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import onnx_graphsurgeon as gs
from onnx_graphsurgeon.util.misc import SynchronizedList


def copied(graph: gs.Graph) -> gs.Graph:
    """Return a copy of a graph. Constants share their values with it, and nodes their attributes'
    values."""
    if any(isinstance(a, gs.Graph) for node in graph.nodes for a in node.attrs.values()):
        return graph.copy()
    return copied_part(graph, graph.nodes, graph.inputs, graph.outputs)


def copied_part(
    graph: gs.Graph,
    nodes: Iterable[gs.Node],
    inputs: Iterable[gs.Tensor],
    outputs: Iterable[gs.Tensor],
) -> gs.Graph:
    """Return a graph of copies of some of a graph's nodes, which hold no sub-graphs.

    Args:
        nodes: of the graph, in the order that they are to have.
        inputs, outputs: tensors of the graph, whose copies are those of the new one.
    """
    nodes, inputs, outputs = list(nodes), list(inputs), list(outputs)
    # By name, as `Graph.copy` does it: of several tensors of one name, the one that is made here.
    read = [t for node in nodes for t in node.inputs]
    named = {t.name: t for t in (*read, *outputs)}
    named |= {t.name: t for node in nodes for t in node.outputs}
    named |= {t.name: t for t in inputs}
    named |= {t.name: t for t in read if isinstance(t, gs.Constant)}
    new = {name: _tensor(tensor) for name, tensor in named.items() if name}
    return gs.Graph(
        nodes=[_node(node, new) for node in nodes],
        inputs=[new[t.name] for t in inputs],
        outputs=[new[t.name] for t in outputs],
        name=graph.name,
        doc_string=graph.doc_string,
        opset=graph.opset,
        import_domains=graph.import_domains,
        functions=list(graph.functions),
        ir_version=graph.ir_version,
    )


def _tensor(tensor: gs.Tensor) -> gs.Tensor:
    """Return a copy without makers and readers."""
    made = object.__new__(type(tensor))
    fields = {**vars(tensor)}
    if isinstance(tensor, gs.Constant):  # what lay in a file of its own need not again
        fields |= {"data_location": None, "_export_dtype": tensor.export_dtype}
    else:
        fields |= {"type": "tensor_type"}
    fields |= {"inputs": _synchronized(made, "outputs"), "outputs": _synchronized(made, "inputs")}
    vars(made).update(fields)
    return made


def _node(node: gs.Node, new: dict[str, gs.Tensor]) -> gs.Node:
    """Return a copy that reads and makes the new tensors, which know of it."""
    made = object.__new__(gs.Node)
    inputs, outputs = _synchronized(made, "outputs"), _synchronized(made, "inputs")
    for old, here, there in ((node.inputs, inputs, "outputs"), (node.outputs, outputs, "inputs")):
        for tensor in old:
            copy = new[tensor.name] if tensor.name else gs.Variable.empty()
            list.append(here, copy)
            list.append(getattr(copy, there), made)
    vars(made).update(
        op=node.op,
        name=node.name,
        attrs=OrderedDict(node.attrs),
        inputs=inputs,
        outputs=outputs,
        domain=node.domain,
    )
    return made


def _synchronized(owner: Any, field: str) -> list[Any]:
    """Return an empty list whose elements' `field` is kept in step with it."""
    made: list[Any] = SynchronizedList.__new__(SynchronizedList)
    vars(made).update(parent_obj=owner, field_name=field)
    return made
