"""One order of axes for attention: (batch …, queries, keys), and a Softmax over the last.

Code that has other orders computes Kᵀ·Q, has its heads last, or turns the logits to and fro. Where
nothing but a product, scale and mask, a Softmax and a product is between, all of it is written
again in the one order; only what goes in and comes out is turned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from tcompile.core.graph import attr, is_const, is_standard, producer
from tcompile.core.node_order import drop_dead, toposort
from tcompile.core.op_traits import BROADCASTS, ELEMENTWISE
from tcompile.passes.normalize.products import Nodes, replace_by

Order = tuple[int, ...]
#: So many nodes are looked at on the way up from a Softmax.
_MOST = 64
#: What may stand between, each element by itself.
_PLAIN = (ELEMENTWISE | BROADCASTS) - {"Softmax"}


@dataclass(frozen=True, eq=False)
class _Path:
    """A chain of nodes from one product to a Softmax, or from there to another.

    Attributes:
        nodes: in execution order, the ends left out.
        main: the operand of each that the chain comes by.
    """

    nodes: tuple[gs.Node, ...]
    main: tuple[int, ...]


def turn_attention(graph: gs.Graph) -> int:
    """One sweep; needs inferred shapes. Returns how many attentions were written again."""
    count = 0
    for node in list(graph.nodes):
        if node.op == "Softmax" and is_standard(node) and node.outputs:
            count += _turned(graph, node)
    if count:
        toposort(drop_dead(graph))
    return count


def _turned(graph: gs.Graph, softmax: gs.Node) -> int:
    logits = softmax.inputs[0]
    if logits.shape is None:
        return 0
    rank, above = len(logits.shape), _above(logits)
    below = _below(softmax.outputs[0]) if above is not None else None
    if above is None or below is None:
        return 0
    product, before = above
    mix, side, after = below
    axis = int(attr(softmax, "axis", -1)) % rank
    turns = any(n.op == "Transpose" for n in (*before.nodes, *after.nodes))
    if not turns and axis == rank - 1 and side == 0:
        return 0  # plain already
    # Each tensor's axes, as numbers of the product's own.
    here = _orders(tuple(range(rank)), before)[-1]
    keys = here[axis]
    there = _orders(here, after)[-1]
    rows = there[rank - 2 if side == 0 else rank - 1]
    summed = there[rank - 1 if side == 0 else rank - 2]
    if keys not in (rank - 1, rank - 2) or summed != keys or {rows, keys} != {rank - 1, rank - 2}:
        return 0
    batch = there[: rank - 2]
    values = mix.inputs[1 - side]
    if sorted(batch) != list(range(rank - 2)) or len(values.shape) != rank:
        return 0
    if not _sound(before) or not _sound(after):
        return 0
    nodes = Nodes(graph, mix)
    swap = keys == rank - 2
    last = (rank - 1, rank - 2) if swap else (rank - 2, rank - 1)
    goal = (*range(rank - 2), *last)  # the axes of the product, in the one order
    a, b = product.inputs
    flip = [*range(rank - 2), rank - 1, rank - 2]
    if any(len(t.shape) != rank for t in (a, b)):
        return 0
    left, right = (nodes.transpose(b, flip), nodes.transpose(a, flip)) if swap else (a, b)
    dims = [product.outputs[0].shape[i] for i in goal]
    made = nodes.op("MatMul", [left, right], dims)
    made.inputs[0].name = product.name
    made = _again(nodes, made, before, tuple(range(rank)), goal)
    made = nodes.op("Softmax", [made], dims, axis=-1)
    made.inputs[0].name = softmax.name
    made = _again(nodes, made, after, here, goal)
    inverse = [batch.index(i) for i in range(rank - 2)]
    seen = nodes.transpose(values, flip) if side else values
    seen = nodes.transpose(seen, [*inverse, rank - 2, rank - 1])
    made = nodes.op("MatMul", [made, seen], [*dims[:-1], seen.shape[-1]])
    made.inputs[0].name = mix.name
    made = nodes.transpose(made, [*batch, rank - 2, rank - 1])
    if side:
        made = nodes.transpose(made, flip)
    replace_by(graph, mix, made)
    return 1


def _orders(start: Order, path: _Path) -> list[Order]:
    """Which of the first axes each tensor's axes are, from the start to the end."""
    found = [start]
    for node in path.nodes:
        order = found[-1]
        if node.op == "Transpose":
            turn = attr(node, "perm", list(range(len(order)))[::-1])
            order = tuple(order[int(p)] for p in turn)
        found.append(order)
    return found


def _again(nodes: Nodes, made: gs.Tensor, path: _Path, start: Order, goal: Order) -> gs.Tensor:
    """Write a chain without its Transposes, in the order `goal`."""
    for node, main, order in zip(path.nodes, path.main, _orders(start, path), strict=False):
        if node.op == "Transpose":
            continue
        turn = [order.index(i) for i in goal]
        inputs = [
            made if i == main else _lifted(nodes, tensor, turn)
            for i, tensor in enumerate(node.inputs)
        ]
        dims = [node.outputs[0].shape[i] for i in turn]
        made = nodes.op(node.op, inputs, dims, **dict(node.attrs))
        made.dtype = node.outputs[0].dtype
        made.inputs[0].name = node.name
    return made


def _lifted(nodes: Nodes, tensor: gs.Tensor, turn: Sequence[int]) -> gs.Tensor:
    """An operand that is broadcast, in another order of axes."""
    if tensor.is_empty() or all(d == 1 for d in tensor.shape):
        return tensor
    missing = len(turn) - len(tensor.shape)
    if list(turn) == sorted(turn):
        return tensor
    return nodes.transpose(nodes.unsqueeze(tensor, range(missing)), turn)


def above_logits(tensor: gs.Tensor) -> tuple[gs.Node, tuple[gs.Node, ...]] | None:
    """The product of two computed tensors that logits come from, and the nodes between."""
    found = _above(tensor)
    return None if found is None else (found[0], found[1].nodes)


def _sound(path: _Path) -> bool:
    """Tell whether all shapes are known that the chain is written again with."""
    return all(
        t.is_empty() or t.shape is not None for n in path.nodes for t in (*n.inputs, *n.outputs)
    )


def _is_product(node: gs.Node) -> bool:
    known = all(t.shape is not None and len(t.shape) > 1 for t in (*node.inputs, *node.outputs))
    return node.op == "MatMul" and known and not any(map(is_const, node.inputs))


def _is_plain(node: gs.Node) -> bool:
    """Tell whether it computes each element by itself; a vector of scales is along an axis."""
    if node.op not in ("QuantizeLinear", "DequantizeLinear"):
        return node.op in _PLAIN
    given = [t for t in node.inputs[1:] if not t.is_empty()]
    return all(t.shape is not None and list(t.shape) in ([], [1]) for t in given)


def _above(tensor: gs.Tensor, left: list[int] | None = None) -> tuple[gs.Node, _Path] | None:
    """The product of two computed tensors that logits come from, and the chain between.

    Args:
        left: how many nodes may still be looked at.
    """
    left = [_MOST] if left is None else left
    left[0] -= 1
    node = producer(tensor)
    if node is None or tensor.shape is None or not is_standard(node) or left[0] < 0:
        return None
    if _is_product(node):
        return node, _Path((), ())
    if node.op != "Transpose" and not _is_plain(node):
        return None
    for i, operand in enumerate(node.inputs):
        if is_const(operand) or operand.shape is None:
            continue
        if node.op != "Transpose" and list(operand.shape) != list(tensor.shape):
            continue
        found = _above(operand, left)
        if found is not None:
            product, path = found
            return product, _Path((*path.nodes, node), (*path.main, i))
    return None


def _below(tensor: gs.Tensor) -> tuple[gs.Node, int, _Path] | None:
    """The product that probabilities go into, by which operand, and the chain between."""
    path: list[gs.Node] = []
    mains: list[int] = []
    while len(tensor.outputs) == 1:
        (node,) = tensor.outputs
        if not is_standard(node):
            return None
        sides = [i for i, t in enumerate(node.inputs) if t is tensor]
        if len(sides) != 1 or node.outputs[0].shape is None:
            return None
        if _is_product(node):
            return node, sides[0], _Path(tuple(path), tuple(mains))
        same = list(node.outputs[0].shape) == list(tensor.shape or [])
        if node.op != "Transpose" and not (_is_plain(node) and same):
            return None
        path.append(node)
        mains.append(sides[0])
        tensor = node.outputs[0]
    return None
