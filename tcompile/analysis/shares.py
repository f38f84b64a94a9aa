"""Shares: the probabilities of a softmax over tokens, and what is made of them before they are
summed.

With a size bias each share is that of all the tokens that its key stands for. A sum over keys comes
out right for that, if all that a share has met on its way is in proportion to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axis
from tcompile.analysis.facts import Facts
from tcompile.analysis.transfer import contracted, einsum_contracted
from tcompile.core.graph import attr, is_const, is_standard, producer, reduced_axes, value
from tcompile.core.op_traits import MOVES, REDUCES

#: What gives twice as much where its first input is twice as much, a share by itself.
_LINEAR = (MOVES - {"Concat"}) | {"Cast", "Dropout", "Neg", "QuantizeLinear", "DequantizeLinear"}
_PICKS = REDUCES | {"Slice", "Split", "Gather"}


@dataclass(frozen=True, eq=False)
class Shares:
    """Shares on their way to a tensor.

    Attributes:
        names: the tensors on the way that hold shares, or what was made of them.
        nodes: the nodes on the way that read one of these.
    """

    names: frozenset[str]
    nodes: tuple[gs.Node, ...]


def over_positions(axis: Axis) -> bool:
    """Return whether an axis runs over positions of the image, or over others beside them."""
    return any(d.root.kind in ("data", "fixed") for d in axis)


def shares_in(tensor: gs.Tensor, facts: Facts) -> Shares:
    """Follow shares to a tensor. They end where a product sums over keys; whether a value is NaN
    does not depend on how large a share is."""
    above, sources, pending = set[int](), list[gs.Tensor](), [tensor]
    least = min(_positions(tensor, facts), 2)  # only maps are looked at on the way to a map
    while pending:
        node = producer(pending.pop())
        if node is None or id(node) in above or _sums(node, facts):
            continue
        above.add(id(node))
        if _source(node, facts):
            sources.append(node.outputs[0])
        else:
            pending += [
                t for t in node.inputs if facts.is_live(t) and _positions(t, facts) >= least
            ]
    names, nodes = {t.name for t in sources}, list[gs.Node]()
    for held in sources:
        for node in held.outputs:
            if id(node) not in above or node.op == "IsNaN":
                continue
            if not any(node is n for n in nodes):
                nodes.append(node)
            for out in node.outputs:
                if out.name not in names and not (
                    node.op in _PICKS and _positions(out, facts) < least
                ):
                    names.add(out.name)
                    sources.append(out)
    return Shares(frozenset(names), tuple(nodes))


def _source(node: gs.Node, facts: Facts) -> bool:
    """Return whether a node is a softmax over positions."""
    if node.op != "Softmax" or not is_standard(node):
        return False
    return over_positions(facts.of(node.inputs[0])[int(attr(node, "axis", -1))])


def _sums(node: gs.Node, facts: Facts) -> bool:
    """Return whether a node is a product that sums over positions."""
    if not is_standard(node) or node.op not in ("MatMul", "Gemm", "Einsum", "Attention"):
        return False
    if node.op == "Attention":
        return True
    places = einsum_contracted(node) if node.op == "Einsum" else enumerate(contracted(node))
    return any(over_positions(facts.of(node.inputs[i])[axis]) for i, axis in places)


def _positions(tensor: gs.Tensor, facts: Facts) -> int:
    """The number of axes of a tensor that run over positions: two of a map of queries and keys."""
    return sum(ax.size(a) > 1 and over_positions(a) for a in facts.of(tensor))


def in_proportion(node: gs.Node, shares: Shares, facts: Facts) -> bool:
    """Return whether what a node gives is in proportion to the shares that it reads.

    Heads that are mixed are for the caller to tell.
    """
    mine = [t.name in shares.names for t in node.inputs]
    if node.op in _LINEAR:
        return mine[0] and not any(mine[1:])
    if node.op in ("Add", "Sub", "Sum"):
        return all(mine)
    if node.op == "Mul":
        return sum(mine) == 1
    if node.op == "Div":
        return mine == [True, False] and not facts.is_live(node.inputs[1])
    if node.op == "Where":
        # A share, or nothing: the condition must not ask how large it is.
        others = [t for t, held in zip(node.inputs[1:], mine[1:], strict=True) if not held]
        return not mine[0] and all(is_const(t) and not np.any(value(t)) for t in others)
    if node.op in ("ReduceMean", "ReduceSum"):
        axes = [facts.of(node.inputs[0])[a] for a in reduced_axes(node)]
        return mine[0] and not any(map(over_positions, axes))
    return False
