"""Transfer functions: from the axes of a node's inputs to those of its outputs.

Each takes (node, facts) and returns the axes of each output, or None where they cannot be told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeAlias

import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import ONE, Axes, Axis
from tcompile.analysis.facts import Facts, Result, free_axis
from tcompile.analysis.transfer_picks import by_index
from tcompile.core.graph import attr, ints, is_const, is_free, reduced_axes, shape, value

Transfer: TypeAlias = Callable[[gs.Node, Facts], Result]


def _axis(node: gs.Node, rank: int, default: int = 0) -> int:
    return int(attr(node, "axis", default)) % rank


def untold(node: gs.Node, facts: Facts) -> Result:
    """An op whose result has axes of its own."""
    return None


def same(node: gs.Node, facts: Facts) -> Result:
    """Elementwise and normalising ops: the first input's axes."""
    return [facts.of(node.inputs[0])] * len(node.outputs)


def normalise(node: gs.Node, facts: Facts) -> Result:
    """LayerNormalization and its kin: the input's axes; mean and deviation lose the normed ones."""
    source = facts.of(node.inputs[0])
    first = _axis(node, len(source), default=-1)
    over = source[:first] + (ONE,) * (len(source) - first)
    return [source] + [over] * (len(node.outputs) - 1)


def broadcast(node: gs.Node, facts: Facts) -> Result:
    """Elementwise with broadcasting."""
    result: Axes = facts.of(node.inputs[0])
    for other in node.inputs[1:]:
        if not other.is_empty():
            result = _broadcast(node, facts, result, facts.of(other))
    return [result]


def _broadcast(node: gs.Node, facts: Facts, a: Axes, b: Axes) -> Axes:
    rank = max(len(a), len(b))
    a, b = (ONE,) * (rank - len(a)) + a, (ONE,) * (rank - len(b)) + b
    return tuple(facts.unify(node, x, y) for x, y in zip(a, b, strict=True))


def matmul(node: gs.Node, facts: Facts) -> Result:
    """Batch axes broadcast; rows of the first, columns of the second."""
    a, b = (facts.of(t) for t in node.inputs)
    facts.unify(node, a[-1], b[-2] if len(b) > 1 else b[-1])
    batch = _broadcast(node, facts, a[:-2], b[:-2])
    rows = (a[-2],) if len(a) > 1 else ()
    columns = (b[-1],) if len(b) > 1 else ()
    return [batch + rows + columns]


def gemm(node: gs.Node, facts: Facts) -> Result:
    """[M,K]·[K,N] with optional transposition."""
    a, b = facts.of(node.inputs[0]), facts.of(node.inputs[1])
    return [(a[1 if attr(node, "transA", 0) else 0], b[0 if attr(node, "transB", 0) else 1])]


def transpose(node: gs.Node, facts: Facts) -> Result:
    """Axes in the order of `perm` (default: reversed)."""
    source = facts.of(node.inputs[0])
    perm = attr(node, "perm", list(range(len(source)))[::-1])
    return [tuple(source[int(p)] for p in perm)]


def reshape(node: gs.Node, facts: Facts) -> Result:
    """Reshape, Flatten, Squeeze, Unsqueeze: the digits regrouped under the output's dims."""
    grouped = ax.regroup(facts.of(node.inputs[0]), shape(node.outputs[0]))
    return None if grouped is None else [grouped]


def slice_(node: gs.Node, facts: Facts) -> Result:
    """Unit steps keep intervals; other steps make an index set of their own."""
    source = list(facts.of(node.inputs[0]))
    bounds = slice_bounds(node)
    if bounds is None:
        return None
    for axis, (start, stop, step) in bounds.items():
        if step == 1:
            source[axis] = ax.sliced(source[axis], start, stop)
        else:
            source[axis] = _derived(node, facts, axis, source[axis])
    return [tuple(source)]


def slice_bounds(node: gs.Node) -> dict[int, tuple[int, int, int]] | None:
    """axis → (start, stop, step) of a Slice with constant bounds, clamped to the dim."""
    parameters = [t for t in node.inputs[1:] if not t.is_empty()]
    if not all(is_const(t) for t in parameters):
        return None
    dims = shape(node.inputs[0])
    starts, ends = ints(node.inputs[1]), ints(node.inputs[2])
    given = len(node.inputs) > 3 and not node.inputs[3].is_empty()
    axes = ints(node.inputs[3]) if given else list(range(len(starts)))
    stepped = len(node.inputs) > 4 and not node.inputs[4].is_empty()
    steps = ints(node.inputs[4]) if stepped else [1] * len(starts)
    found = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis %= len(dims)
        low, high, step = slice(
            start, end if step > 0 or end >= -dims[axis] else None, step
        ).indices(dims[axis])
        found[axis] = (low, high, step)
    return found


def split_sizes(node: gs.Node) -> list[int]:
    """The sizes of a Split's outputs along its axis."""
    axis = _axis(node, len(node.inputs[0].shape))
    return [shape(t)[axis] for t in node.outputs]


def split(node: gs.Node, facts: Facts) -> Result:
    """Consecutive intervals of one axis."""
    source = facts.of(node.inputs[0])
    axis = _axis(node, len(source))
    results: list[Axes] = []
    start = 0
    for length in split_sizes(node):
        part = ax.sliced(source[axis], start, start + length)
        results.append((*source[:axis], part, *source[axis + 1 :]))
        start += length
    return results


def concat(node: gs.Node, facts: Facts) -> Result:
    """Along the axis: a list of pieces; what does not depend on the image is `fixed` there."""
    inputs = [facts.of(t) for t in node.inputs]
    axis = _axis(node, len(inputs[0]))
    any_live = any(facts.is_live(t) for t in node.inputs)
    parts: list[Axis] = []
    for tensor, source in zip(node.inputs, inputs, strict=True):
        length = ax.size(source[axis])
        if any_live and not facts.is_live(tensor):
            parts.append(ax.new(f"{tensor.name}/{axis}", length, "fixed"))
        else:
            parts.append(source[axis])
    live = [s for t, s in zip(node.inputs, inputs, strict=True) if facts.is_live(t)] or inputs
    merged = list(live[0])
    for source in inputs:
        for i, other in enumerate(source):
            if i != axis:
                merged[i] = facts.unify(node, merged[i], other)
    # A stack of features (weights, heads) has no identity worth keeping.
    if any(ax.tracked(p) for p in parts):
        merged[axis] = ax.concat(parts)
    else:
        merged[axis] = ax.new(
            f"{node.outputs[0].name}/{axis}", sum(map(ax.size, parts)), "untracked"
        )
    return [tuple(merged)]


def gather(node: gs.Node, facts: Facts) -> Result:
    """A scalar drops the axis, a run of consecutive indices slices it, others make a new one."""
    source, index = facts.of(node.inputs[0]), facts.of(node.inputs[1])
    axis = _axis(node, len(source))
    picked: Axes = index
    if is_const(node.inputs[1]) and len(index) == 1:
        run = gather_run(node)
        picked = (
            (ax.sliced(source[axis], run[0], run[1]),)
            if run
            else (_reordered(node, facts, axis, source[axis]),)
        )
    elif len(index) and not facts.is_live(node.inputs[1]):
        picked = tuple(
            _derived(node, facts, axis + i, source[axis], ax.size(a), a)
            for i, a in enumerate(index)
        )
    elif len(index):
        picked = tuple(
            by_index(node, facts, axis + i, source[axis], a) for i, a in enumerate(index)
        )
    return [(*source[:axis], *picked, *source[axis + 1 :])]


def _reordered(node: gs.Node, facts: Facts, axis: int, source: Axis) -> Axis:
    """An index set of the node's own; one that has every position is remembered as an order.

    The same order made twice of one axis is one index set.
    """
    index = value(node.inputs[1]).reshape(-1) % ax.size(source)
    if not ax.tracked(source) or sorted(index) != list(range(ax.size(source))):
        return _derived(node, facts, axis, source)
    order = tuple(int(i) for i in index)
    tag = hashlib.sha256(repr((source, order)).encode()).hexdigest()[:12]
    made = ax.new(f"order/{tag}/reordered {ax.show(source)}", len(order), "data")
    if made:
        facts.permuted[made[0].root] = (source, order)
        facts.picked.setdefault(made[0].root, (f"Gather '{node.name}'", len(order), len(order)))
        facts.origin[made[0].root] = ax.roots(source)
    return made


def gather_run(node: gs.Node) -> tuple[int, int] | None:
    """[start, stop) where a Gather's constant 1-D index is a run of consecutive positions."""
    dims = shape(node.inputs[0])
    axis = _axis(node, len(dims))
    index = value(node.inputs[1]).reshape(-1) % dims[axis]
    start = int(index[0]) if len(index) else 0
    consecutive = all(int(v) == start + i for i, v in enumerate(index))
    return (start, start + len(index)) if len(index) and consecutive else None


def _derived(
    node: gs.Node,
    facts: Facts,
    axis: int,
    source: Axis,
    length: int | None = None,
    index: Axis = ONE,
) -> Axis:
    """An index set of the node's own making, tracked if what it was made from is."""
    length = shape(node.outputs[0])[axis] if length is None else length
    if ax.has_batch(index):
        return index
    kind: ax.Kind = "data" if ax.tracked(source) else "untracked"
    made = ax.new(f"{node.outputs[0].name}/{axis}", length, kind)
    if made:
        facts.origin[made[0].root] = ax.roots(source)
    return made


def expand(node: gs.Node, facts: Facts) -> Result:
    """Expand, Tile, ConstantOfShape: new positions are batch where they hold the free batch."""
    out = shape(node.outputs[0])
    source = facts.of(node.inputs[0]) if node.op != "ConstantOfShape" else ()
    source = (ONE,) * (len(out) - len(source)) + source
    found: list[Axis] = []
    for i, (axis, dim) in enumerate(zip(source, out, strict=True)):
        if ax.size(axis) == dim:
            found.append(axis)
            continue
        name = f"{node.outputs[0].name}/{i}"
        if is_free(dim):
            found.append(free_axis(name, dim, "untracked"))
        else:
            found.append(ax.new(name, dim, "data" if ax.tracked(axis) else "untracked"))
    return [tuple(found)]


def reduce(node: gs.Node, facts: Facts) -> Result:
    """The reduced axes go, or stay with size 1."""
    source = facts.of(node.inputs[0])
    arg = node.op in ("ArgMax", "ArgMin")
    gone = [_axis(node, len(source))] if arg else reduced_axes(node)
    if attr(node, "keepdims", 1) == 1:
        return [tuple(ONE if i in gone else a for i, a in enumerate(source))]
    return [tuple(a for i, a in enumerate(source) if i not in gone)]


def attention(node: gs.Node, facts: Facts) -> Result:
    """ai.onnx Attention: rows of the query, features of the value."""
    q, v, width = facts.of(node.inputs[0]), facts.of(node.inputs[2]), shape(node.outputs[0])[-1]
    # Joined heads of the value are repeated where several heads of queries share one.
    features = (
        v[-1] if ax.size(v[-1]) == width else ax.new(node.outputs[0].name, width, "untracked")
    )
    return [(*q[:-1], features)] if len(node.outputs) == 1 else None


def einsum(node: gs.Node, facts: Facts) -> Result:
    """Letters are axes."""
    if not spelled_out(node):
        return None
    terms, out = einsum_terms(node)
    letters: dict[str, Axis] = {}
    for term, tensor in zip(terms, node.inputs, strict=True):
        for letter, axis in zip(term, facts.of(tensor), strict=True):
            letters[letter] = facts.unify(node, letters.get(letter, axis), axis)
    return [tuple(letters[c] for c in out)]


def spelled_out(node: gs.Node) -> bool:
    """Return whether an Einsum has a letter for every axis and says which its result has."""
    equation = str(attr(node, "equation"))
    return "." not in equation and "->" in equation


def einsum_terms(node: gs.Node) -> tuple[list[str], str]:
    """The letters of each operand of an Einsum, and those of its result."""
    terms, _, out = str(attr(node, "equation")).replace(" ", "").partition("->")
    return terms.split(","), out


def contracted(node: gs.Node) -> tuple[int, int]:
    """The contracted axis of each operand of MatMul or Gemm."""
    if node.op == "Gemm":
        return (0 if attr(node, "transA", 0) else 1), (1 if attr(node, "transB", 0) else 0)
    return -1, -2


def einsum_contracted(node: gs.Node) -> list[tuple[int, int]]:
    """(operand, axis) of every letter that the result does not have of a spelled-out Einsum."""
    if not spelled_out(node):
        return []
    terms, out = einsum_terms(node)
    return [
        (i, axis)
        for i, term in enumerate(terms)
        for axis, letter in enumerate(term)
        if letter not in out
    ]
