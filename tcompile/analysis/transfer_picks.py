"""Transfer functions of ops that pick positions by computed indices, or write to them.

What they give runs over the index set of the indices: two tensors picked by the same indices hold
the same tokens.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axes, Axis
from tcompile.analysis.facts import Facts, Result
from tcompile.core.graph import attr, shape


def top_k(node: gs.Node, facts: Facts) -> Result:
    """TopK: positions in the order of their values are an index set of their own."""
    source = facts.of(node.inputs[0])
    axis = int(attr(node, "axis", -1)) % len(source)
    picked = _picked(node, facts, f"{node.name}/{axis}", shape(node.outputs[0])[axis], source[axis])
    return [(*source[:axis], picked, *source[axis + 1 :])] * len(node.outputs)


def gather_elements(node: gs.Node, facts: Facts) -> Result:
    """GatherElements: positions of the indices along the axis, of the data along others."""
    source, index = facts.of(node.inputs[0]), facts.of(node.inputs[1])
    along = int(attr(node, "axis", 0)) % len(source)
    found: list[Axis] = []
    for i, (axis, other) in enumerate(zip(source, index, strict=True)):
        if i == along:
            found.append(by_index(node, facts, i, axis, other))
            continue
        kept = axis if ax.size(axis) == ax.size(other) else ax.sliced(axis, 0, ax.size(other))
        found.append(facts.unify(node, kept, other))
    return [tuple(found)]


def gather_nd(node: gs.Node, facts: Facts) -> Result:
    """GatherND: positions of the indices, then the axes of the data that no index names."""
    source, index = facts.of(node.inputs[0]), facts.of(node.inputs[1])
    batch, named = int(attr(node, "batch_dims", 0)), shape(node.inputs[1])[-1]
    gone = source[batch : batch + named]
    head: list[Axis] = [
        facts.unify(node, a, b) for a, b in zip(source[:batch], index[:batch], strict=True)
    ]
    joined = tuple(d for axis in gone if not ax.has_batch(axis) for d in axis)
    head += [
        by_index(node, facts, batch + i, joined, axis) for i, axis in enumerate(index[batch:-1])
    ]
    return [(*head, *source[batch + named :])]


def scatter_elements(node: gs.Node, facts: Facts) -> Result:
    """ScatterElements: the positions of the data that is written to."""
    source, updates = facts.of(node.inputs[0]), facts.of(node.inputs[2])
    along = int(attr(node, "axis", 0)) % len(source)
    found = [
        _written(node, facts, i, axis, other)
        if i == along
        else (facts.unify(node, axis, other) if ax.size(axis) == ax.size(other) else axis)
        for i, (axis, other) in enumerate(zip(source, updates, strict=True))
    ]
    return [tuple(found)]


def scatter_nd(node: gs.Node, facts: Facts) -> Result:
    """ScatterND: the positions of the data that is written to."""
    source, updates = facts.of(node.inputs[0]), facts.of(node.inputs[2])
    named = shape(node.inputs[1])[-1]
    many = len(node.inputs[1].shape) - 1
    tokens = tuple(d for axis in updates[:many] if not ax.has_batch(axis) for d in axis)
    head: Axes = tuple(
        axis if ax.has_batch(axis) else _written(node, facts, i, axis, tokens)
        for i, axis in enumerate(source[:named])
    )
    rest = zip(source[named:], updates[many:], strict=True)
    return [(*head, *(facts.unify(node, a, b) for a, b in rest))]


def _picked(node: gs.Node, facts: Facts, name: str, length: int, source: Axis) -> Axis:
    """An index set of positions taken from those of an axis, tracked if they are."""
    made = ax.new(name, length, "data" if ax.tracked(source) else "untracked")
    if made:
        facts.origin[made[0].root] = ax.roots(source)
        if ax.tracked(source):
            what = f"{node.op} '{node.name}'"
            facts.picked.setdefault(made[0].root, (what, length, ax.size(source)))
    return made


def by_index(node: gs.Node, facts: Facts, place: int, source: Axis, index: Axis) -> Axis:
    """The index set of computed indices into an axis. One that has no meaning of its own, such as
    an order drawn by chance, gets that of what is picked."""
    if ax.tracked(index) or not ax.tracked(source):
        return index
    whole = len(index) == 1 and index[0].whole
    name = f"{index[0].root.name}/picked" if whole else f"{node.outputs[0].name}/{place}"
    return _picked(node, facts, name, ax.size(index), source)


def _written(node: gs.Node, facts: Facts, place: int, source: Axis, updates: Axis) -> Axis:
    """The axis that is written to: positions of tokens, if tokens are written to it."""
    if ax.tracked(source) or not ax.tracked(updates):
        return source
    made = ax.new(f"{node.outputs[0].name}/{place}", ax.size(source), "data")
    if made:
        facts.origin[made[0].root] = ax.roots(updates)
    return made
