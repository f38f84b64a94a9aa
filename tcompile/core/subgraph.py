"""A part of a graph as a graph of its own: what it reads from outside becomes its inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx_graphsurgeon as gs

from tcompile.core.copies import copied, copied_part
from tcompile.core.graph import is_const, producer, tensors_of
from tcompile.core.node_order import drop_dead, toposort

#: Elements up to which constants are alike by their contents, not by their names.
_SMALL = 1 << 16


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
    kept = [n for n in graph.nodes if n.name in nodes]
    made = {o.name: o for n in kept for o in n.outputs}
    inputs: dict[str, gs.Tensor] = {}
    for tensor in (t for n in kept for t in n.inputs):
        if tensor.name and tensor.name not in made and not is_const(tensor):
            inputs.setdefault(tensor.name, tensor)
    known = made if all(name in made for name in outputs) else tensors_of(graph)
    part = copied_part(graph, kept, inputs.values(), [known[name] for name in outputs])
    called = {n.op for n in kept}
    part.functions = [f for f in part.functions if f.name in called]
    drop_dead(part)
    part.inputs = [t for t in part.inputs if t.outputs or any(t is o for o in part.outputs)]
    return toposort(part)


def repeated(graph: gs.Graph, times: int) -> gs.Graph:
    """A graph several times over, each copy with inputs and outputs of its own.

    What runs so shares the cost of starting a runtime, and as the inputs are others nothing can be
    computed once for all copies. Constants are shared.
    """
    whole = copied(graph)
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


def joined(graphs: Mapping[str, gs.Graph]) -> gs.Graph:
    """Several graphs of the same inputs as one, in which what they compute alike is computed once.

    Outputs are called `NAME/OUTPUT`, by the names of the graphs. Nodes are alike where they have
    the same operator, attributes and inputs; large constants where they have the same name.
    """
    first = next(iter(graphs.values()))
    whole = copied(first)
    whole.nodes.clear()
    whole.outputs.clear()
    inputs = {str(t.name): t for t in whole.inputs}
    made: dict[object, list[gs.Tensor]] = {}
    functions = {f.name: f for graph in graphs.values() for f in graph.functions}
    whole.functions = list(functions.values())

    def constant(tensor: gs.Constant) -> gs.Tensor:
        content = b"" if tensor.values.size > _SMALL else tensor.values.tobytes()
        key = (tensor.name, str(tensor.dtype), tuple(tensor.shape), content)
        if key not in made:
            made[key] = [gs.Constant(f"constant{len(made)}", tensor.values)]
        return made[key][0]

    for prefix, graph in graphs.items():
        here: dict[str, gs.Tensor] = dict(inputs)
        for node in graph.nodes:
            read = [
                t if t.is_empty() else constant(t) if is_const(t) else here[t.name]
                for t in node.inputs
            ]
            attrs = tuple(sorted((k, _attribute(v)) for k, v in node.attrs.items()))
            key = (node.op, node.domain, attrs, tuple(t.name for t in read))
            if key not in made:
                number = len(made)
                made[key] = [
                    gs.Variable(f"{number}/{i}" if o.name else "", o.dtype, o.shape)
                    for i, o in enumerate(node.outputs)
                ]
                whole.nodes.append(
                    gs.Node(
                        node.op, f"node{number}", dict(node.attrs), read, made[key], node.domain
                    )
                )
            here |= {str(o.name): new for o, new in zip(node.outputs, made[key], strict=True)}
        for out in graph.outputs:
            new = gs.Variable(f"{prefix}/{out.name}", out.dtype, out.shape)
            source = constant(out) if is_const(out) else here[out.name]
            whole.nodes.append(gs.Node("Identity", new.name, {}, [source], [new]))
            whole.outputs.append(new)
    return whole


def _attribute(value: object) -> str:
    """An attribute as text; a tensor by its contents."""
    if isinstance(value, gs.Constant):
        return f"{value.values.dtype}{value.values.shape}{value.values.tobytes().hex()}"
    return repr(value)
