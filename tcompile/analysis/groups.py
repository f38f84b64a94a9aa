"""Groups of tokens that a later part of the model joins: patch mergers, pixel shuffle, pooling.

A group is what one position of the regrouped tensor holds: `outer` says which group, `inner` which
of its members, both in digits of the patch axis. Tokens may then leave in whole groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axes, Axis, Digit
from tcompile.analysis.facts import Facts
from tcompile.analysis.transfer_grid import tiled_pool
from tcompile.core.op_traits import REARRANGES


@dataclass(frozen=True)
class Grouping:
    """The groups that patches fall into.

    Attributes:
        outer: digits of the group's number, row-major.
        inner: digits of the member's number within its group.
        node: the node that joins the members.
    """

    outer: Axis
    inner: Axis
    node: str

    @property
    def members(self) -> int:
        """Tokens in a group."""
        return ax.size(self.inner)

    @property
    def sides(self) -> tuple[int, ...]:
        """The members of a group, side by side: (2, 2)."""
        return tuple(d.size for d in self.inner)

    def table(self, patches: Axis) -> np.ndarray[Any, Any]:
        """[groups, members] i64: the position of each member on the patch axis."""
        digits = self.outer + self.inner
        values = np.indices([d.size for d in digits]).reshape(len(digits), -1)
        position = np.zeros(values.shape[1], np.int64)
        for part in patches:
            index = sum(
                value * digit.stride
                for digit, value in zip(digits, values, strict=True)
                if digit.root == part.root
            )
            position = position * part.size + (index // part.stride) % part.size
        return position.reshape(-1, self.members)


def find_grouping(graph: gs.Graph, facts: Facts, patches: Axis) -> Grouping | None:
    """The largest groups that some node joins, the last of equals; None where none does."""
    roots = {d.root for d in patches}
    best: Grouping | None = None
    for node in graph.nodes:
        pool = tiled_pool(node) is not None
        if not pool and node.op not in REARRANGES:
            continue
        for out in node.outputs:
            outer = _outer(facts.of(out), roots, pool)
            inner = complement(patches, outer) if outer else None
            if outer is None or not inner:
                continue
            if best is None or ax.size(inner) >= best.members:
                best = Grouping(outer, inner, node.name)
    return best


def _outer(axes: Axes, roots: set[ax.Root], pool: bool) -> Axis | None:
    """The patch digits that have dims of their own; None where none are joined with features."""
    pure: list[Digit] = []
    joined = False
    for axis in axes:
        mine = [d for d in axis if d.root in roots]
        if any(d.root.kind == "untracked" for d in axis):
            joined = joined or bool(mine)
        else:
            pure += mine
    return tuple(pure) if pure and (joined or pool) else None


def complement(patches: Axis, outer: Axis) -> Axis | None:
    """The digits of the patch axis that are not in `outer`, in order; None where they overlap."""
    inner: list[Digit] = []
    used = 0
    for part in patches:
        top = part.stride * part.size
        mine = sorted((d for d in outer if d.root == part.root), key=lambda d: -d.stride)
        for digit in (d for d in mine if part.stride <= d.stride < top):
            used += 1
            reach = digit.stride * digit.size
            if reach > top:
                return None
            if reach < top:
                inner.append(Digit(part.root, reach, top // reach))
            top = digit.stride
        if top > part.stride:
            inner.append(Digit(part.root, part.stride, top // part.stride))
    return tuple(inner) if used == len(outer) else None
