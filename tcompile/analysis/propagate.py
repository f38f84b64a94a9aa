"""Forward propagation of axes through the graph.

Before it, `rotations` finds which constants are the cosines and which the sines of one rotation. A
token without a position (one that stands for many) is not rotated: it reads 1 for a cosine and 0
for a sine. Spelled x·cos + rotate(x)·sin, where rotate has a minus sign in it, or as the product of
complex numbers re·cos − im·sin, re·sin + im·cos.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axes
from tcompile.analysis.facts import Facts, free_axis
from tcompile.analysis.ops import op_of
from tcompile.core.errors import InternalError
from tcompile.core.graph import image_inputs, is_const, is_free, nbytes, producer, shape, value
from tcompile.core.op_traits import READS_SHAPE, REARRANGES


def propagate(
    graph: gs.Graph,
    tokens: frozenset[ax.Root] = frozenset(),
    written: frozenset[str] = frozenset(),
    meant: Mapping[ax.Root, ax.Axis] | None = None,
) -> Facts:
    """Axes of every tensor of a normalised graph (all shapes known, nodes in order).

    The first dim of every input is the batch, or a batch of its own; the other dims of images are
    `data`, those of masks, sizes and the like `untracked`: they take the meaning of what they are
    joined with.

    Args:
        tokens: index sets that win where an operation joins them with others, position by position.
        written: nodes that an earlier rewrite wrote, see `Facts`.
        meant: index sets of masks and the like → the axes that they turned out to be.
    """
    facts = Facts(preferred=tokens, written=written, unrotated=rotations(graph))
    images = {t.name for t in image_inputs(graph)}
    for tensor in graph.inputs:
        dims = shape(tensor)
        kind: ax.Kind = "data" if tensor.name in images else "untracked"
        facts.live.add(tensor.name)
        if tensor.name in images:
            facts.imaged.add(tensor.name)
        facts.axes[tensor.name] = _as_meant(
            meant,
            tuple(
                free_axis("batch", d, "batch")
                if i == 0 and (is_free(d) or len(dims) >= 3)
                else ax.new(f"{tensor.name}/{i}", d, kind)
                for i, d in enumerate(dims)
            ),
        )
    for node in graph.nodes:
        op = op_of(node)
        result = op.transfer(node, facts) if op else None
        live = node.op not in READS_SHAPE and any(facts.is_live(t) for t in node.inputs)
        imaged = live and any(t.name in facts.imaged for t in node.inputs)
        for i, out in enumerate(node.outputs):
            if out.is_empty():
                continue
            if out.shape is None:
                raise InternalError(f"the shape of '{out.name}' is unknown", where=node.name)
            known = result[i] if result is not None and i < len(result) else None
            # Nothing runs over no positions; and what does not fit was not understood.
            if 0 in shape(out) or (known and tuple(map(ax.size, known)) != shape(out)):
                known = None
            facts.axes[out.name] = _as_meant(meant, _fresh(out, live) if known is None else known)
            if known is None and live:
                why = "axes cannot be followed" if op else "is not an op that tcompile knows"
                facts.opaque[out.name] = f"{node.op} '{node.name}': {why}"
                for root in (d.root for axis in facts.axes[out.name] for d in axis):
                    if root.kind == "data":
                        facts.lost[root] = facts.opaque[out.name]
            if live:
                facts.live.add(out.name)
            if imaged:
                facts.imaged.add(out.name)
    return facts


def _as_meant(meant: Mapping[ax.Root, ax.Axis] | None, axes: Axes) -> Axes:
    """The axes with those that are known by now to be tokens or the batch in their place."""
    if not meant:
        return axes
    return tuple(meant.get(a[0].root, a) if len(a) == 1 and a[0].whole else a for a in axes)


def _fresh(tensor: gs.Tensor, live: bool) -> Axes:
    """Axes of a tensor nothing is known of: of their own, tracked where data may hide in them."""
    found: list[ax.Axis] = []
    for i, dim in enumerate(shape(tensor)):
        name = f"{tensor.name}/{i}"
        kind: ax.Kind = "data" if live or is_free(dim) else "untracked"
        found.append(free_axis(name, dim, kind) if is_free(dim) else ax.new(name, dim, kind))
    return tuple(found)


_LARGEST = 1 << 26
_WALKED = REARRANGES | {"Concat", "Split", "Slice", "Gather", "Neg"}


def rotations(graph: gs.Graph) -> dict[str, float]:
    """Name of each rotary table → what an unrotated token reads of it: 1.0 or 0.0."""
    found: dict[str, float] = {}
    tables: dict[str, gs.Tensor] = {}
    unknown: list[gs.Tensor] = []
    for node in graph.nodes:
        if node.op not in ("Add", "Sub") or len(node.inputs) != 2:
            continue
        products = [producer(t) for t in node.inputs]
        if any(p is None or p.op != "Mul" for p in products):
            continue
        first, second = (_table(p) for p in products if p is not None)
        if first is None or second is None or first.name == second.name:
            continue
        if not _unit(first, second):
            continue
        tables |= {first.name: first, second.name: second}
        if node.op == "Sub":
            found[first.name], found[second.name] = 1.0, 0.0
            continue
        signs = [_negated(_other(p)) for p in products if p is not None]
        if signs[0] != signs[1]:
            found[first.name], found[second.name] = (0.0, 1.0) if signs[0] else (1.0, 0.0)
            continue
        unknown += [first, second]
    # re·sin + im·cos has no sign to tell by; its tables equal those of re·cos − im·sin.
    values = {_key(tables[n]): fill for n, fill in found.items()}
    for table in unknown:
        if _key(table) in values:
            found.setdefault(table.name, values[_key(table)])
    return found


def _key(table: gs.Tensor) -> tuple[int, bytes]:
    stored = value(table)
    return stored.size, stored.tobytes()


def _table(product: gs.Node) -> gs.Tensor | None:
    """The stored operand of a product."""
    stored = [t for t in product.inputs if is_const(t)]
    return stored[0] if len(stored) == 1 and 4 <= nbytes(stored[0]) <= _LARGEST else None


def _other(product: gs.Node) -> gs.Tensor:
    return next(t for t in product.inputs if not is_const(t))


def _unit(a: gs.Tensor, b: gs.Tensor) -> bool:
    """Return whether a² + b² = 1 everywhere, and both are tables of many values."""
    if tuple(a.shape) != tuple(b.shape) or np.prod(a.shape) < 2:
        return False
    one, two = (value(t).astype(np.float64) for t in (a, b))
    return bool(np.allclose(one * one + two * two, 1.0, atol=1e-3))


def _negated(tensor: gs.Tensor, depth: int = 8) -> bool:
    """Return whether some part of the tensor was negated on the way, within a few views."""
    node = producer(tensor)
    if node is None or depth == 0 or node.op not in _WALKED:
        return False
    if node.op == "Neg":
        return True
    return any(_negated(t, depth - 1) for t in node.inputs if not is_const(t))
