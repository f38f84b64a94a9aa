"""Which tokens leave, and into which they merge: the matching of `merge`."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.common import numbers
from tcompile.passes.reduce.reducers.merge_split import Side

#: Taken off the edges of tokens that have left.
_FAR = 1e30


def match(
    b: Builder, edges: gs.Tensor, a: Side, other: Side, r: int, both: bool
) -> tuple[gs.Tensor, gs.Tensor]:
    """Of each token of A its best edge, of these the r best; ties: the lower number.

    Args:
        edges: [B, |A|, |B|].
        both: r//2 go from A to B, then the rest from B to what is left of A, by the same edges
            (MCTF); what went into a token that leaves in its turn goes with it.

    Returns:
        source, target: [B, r] places of those that leave and of those they become part of.
    """
    first, second = (r // 2, r - r // 2) if both else (r, 0)
    if first:
        one, partner = _best(b, edges, a.count, first)
        source, target = a.at(b, one), other.at(b, partner)
        if not second:
            return source, target
        edges = _without(b, edges, one)
    back, into = _best(b, b.transpose(edges, [0, 2, 1]), other.count, second)
    later, last = other.at(b, back), a.at(b, into)
    if not first:
        return later, last
    # [B, |B|]: where what is in each token of B is in the end.
    ends = b.op(
        "ScatterElements",
        other.at(b, numbers(b, back, other.count)),
        back,
        last,
        dtype=np.int64,
        axis=1,
    )
    target = b.op("GatherElements", ends, partner, dtype=np.int64, axis=1)
    return b.concat([source, later], 1), b.concat([target, last], 1)


def _best(b: Builder, edges: gs.Tensor, count: int, r: int) -> tuple[gs.Tensor, gs.Tensor]:
    """[B, r] twice: numbers of the rows with the best edges, and of their best columns."""
    value, partner = _top(b, edges, 1)
    partner = b.squeeze(partner, 2)
    if r == count:
        return numbers(b, partner, count), partner
    _, rows = _top(b, b.squeeze(value, 2), r)
    return rows, b.op("GatherElements", partner, rows, dtype=np.int64, axis=1)


def _without(b: Builder, edges: gs.Tensor, rows: gs.Tensor) -> gs.Tensor:
    """The edges, those of the numbered rows out of reach."""
    zero, far = b.const([0], np.float32), b.const([_FAR], np.float32)
    near = b.op("Mul", b.reduce("Max", edges, [2]), zero)
    low = b.op("Sub", b.op("Mul", b.cast(rows, np.float32), zero), far)
    gone = b.op("ScatterElements", near, rows, low, axis=1)
    return b.op("Add", edges, b.unsqueeze(gone, 2))


def _top(b: Builder, x: gs.Tensor, k: int) -> list[gs.Variable]:
    return b.nodes("TopK", [x, [k]], [np.float32, np.int64], axis=-1, largest=1, sorted=1)
