"""The token space of a model: its token axis, and what the positions along it are.

A later part of the model may join tokens into groups (patch mergers, pixel shuffle, pooling). A
group is what one position of the regrouped tensor holds: `outer` says which group, `inner` which of
its members, both in digits of the patch axis. Tokens may then leave in whole groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis import axes as ax
from tcompile.analysis.attention import Attention
from tcompile.analysis.axes import Axes, Axis, Digit, Interval
from tcompile.analysis.facts import Facts
from tcompile.analysis.transfer_grid import tiled_pool
from tcompile.core.op_traits import REARRANGES

_MOST_SEGMENTS = 64


@dataclass(frozen=True)
class Order:
    """Another order of the patches, or of their groups, that a Gather puts them in.

    Attributes:
        name: of its index set.
        groups: whether groups are ordered, not tokens.
        permutation: the position in the first order of each one in this.
    """

    name: str
    groups: bool
    permutation: tuple[int, ...]


#: A run of pieces, first and last, and how many other keys stand before and behind it.
Padded: TypeAlias = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class TokenSpace:
    """The token axis of a model.

    Attributes:
        axis: all N tokens.
        pieces: its parts in order; the one that is not fixed holds the patches.
        patch: index of the patches in `pieces`, of their first part where they are several.
        segments: parts of equal size that the patches fall into (frames, windows), each of which
            some attention sees apart: the same number of tokens leaves each.
        grid: (h, w) of the patches, or (T,) where they never were a grid.
        orders: other orders of patches or groups, by the axis that they give.
        runs: each run of pieces, by its axis.
        padded: runs that stand among keys that are no tokens (learned keys, sink columns), by the
            axis of all: the run, and how many stand before and behind it.
        grouping: the groups that a later part of the model joins patches into, if it does.
        located: dims that were expressed in terms of this space (`token_dims.locate`).
    """

    axis: Axis
    pieces: tuple[Interval, ...]
    patch: int
    grid: tuple[int, ...]
    grouping: Grouping | None = None
    segments: int = 1
    orders: dict[Axis, Order] = field(default_factory=dict, compare=False, repr=False)
    runs: dict[Axis, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)
    padded: dict[Axis, Padded] = field(default_factory=dict, compare=False, repr=False)
    located: dict[Axes, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.runs:
            for first in range(len(self.pieces)):
                for last in range(first + 1, len(self.pieces) + 1):
                    self.runs.setdefault(ax.from_pieces(self.pieces[first:last]), (first, last))

    @property
    def total(self) -> int:
        return ax.size(self.axis)

    @property
    def tiles(self) -> str:
        """Words for tokens of images or tiles that each have special tokens of their own and are
        attended together; empty where it has none."""
        inner = [d for d in self.axis if any(p.fixed for p in d.root.pieces)]
        if len(self.axis) < 2 or not inner:
            return ""
        parts = [f"{p.size} {'special' if p.fixed else 'patches'}" for p in inner[0].root.pieces]
        return (
            f"its tokens are those of {self.total // inner[0].size} images or tiles, each with "
            f"special tokens of its own ({', '.join(parts)}), and some attention runs over those "
            "of all: tcompile does not reduce that"
        )

    @property
    def end(self) -> int:
        """Index of the first piece behind the patches."""
        return self.patch + self.segments

    @property
    def patches(self) -> int:
        return sum(p.size for p in self.pieces[self.patch : self.end])

    @property
    def whole_patches(self) -> Axis | None:
        """The axis of the patches alone, where they are all there is of it."""
        parts = self.pieces[self.patch : self.end]
        axis = parts[0].axis
        return axis if ax.size(axis) == self.patches and parts[0].start == 0 else None

    @property
    def prefix(self) -> int:
        """Tokens before the patches (CLS, distillation, registers)."""
        return sum(p.size for p in self.pieces[: self.patch])

    @property
    def suffix(self) -> int:
        """Fixed tokens after the patches."""
        return sum(p.size for p in self.pieces[self.end :])


@dataclass(frozen=True)
class Residual:
    """Attentions whose result is added to a stream.

    Attributes:
        attentions: those that reach the same add.
        stream: the tensor they are added to.
        after: the sum.
        axis: the token axis of the stream.
        joined: whether something else was added to their result first.
    """

    attentions: tuple[Attention, ...]
    stream: str
    after: str
    axis: Axis
    joined: bool


def token_axes(found: Sequence[Residual]) -> list[Axis]:
    """The axes that streams run over: that of most blocks first, the larger of equals."""
    votes = Counter(r.axis for r in found if ax.size(r.axis) > 1)
    return sorted(votes, key=lambda a: (-votes[a], -ax.size(a)))


def token_space(
    found: Sequence[Residual], prefix: int | None = None, axis: Axis | None = None
) -> TokenSpace | None:
    """A token axis and its parts; None where it is not made of patches and fixed tokens.

    Args:
        prefix: how many tokens at its beginning are not patches, where the person says so.
        axis: which one; None: the first whose parts are patches and fixed tokens.
    """
    if axis is None:
        known = [token_space(found, prefix, a) for a in token_axes(found)]
        return next((s for s in known if s is not None), None)
    pieces = ax.pieces(axis)
    loose = [i for i, p in enumerate(pieces) if not p.fixed]
    if len(loose) != 1:
        return None
    patch = loose[0]
    if prefix is not None:
        before = sum(p.size for p in pieces[:patch])
        if not before <= prefix < before + pieces[patch].size:
            return None
        pieces, patch = _stated(pieces, patch, prefix - before)
    part = pieces[patch]
    grid = tuple(d.size for d in part.axis) if part.full else (part.size,)
    parts = _segments([r for r in found if r.axis == axis], axis, part)
    pieces = (*pieces[:patch], *parts, *pieces[patch + 1 :])
    return TokenSpace(axis, pieces, patch, grid, segments=len(parts))


def with_orders(space: TokenSpace, facts: Facts) -> TokenSpace:
    """The space with the orders that its patches or groups are put in later."""
    found: dict[Axis, Order] = {}
    for root, (source, index) in facts.permuted.items():
        groups = space.grouping is not None and source == space.grouping.outer
        if groups or (source == space.whole_patches == space.axis):
            found[(ax.Digit(root, 1, root.size),)] = Order(root.name, groups, index)
    return replace(space, orders=found)


def with_learned(space: TokenSpace, attentions: Sequence[Attention]) -> TokenSpace:
    """The space with the runs of tokens that have learned keys or sink columns beside them."""
    found: dict[Axis, Padded] = {}
    for one in attentions:
        run = space.runs.get(one.columns)
        if run is None or one.beside == (0, 0):
            continue
        for axis in (one.seen, one.valued):
            found |= _among(ax.pieces(axis), one.columns, run)
    return replace(space, padded=found) if found else space


def _among(parts: Sequence[Interval], tokens: Axis, run: tuple[int, int]) -> dict[Axis, Padded]:
    """Each axis with the tokens and some of what stands beside them, which is joined one by one."""
    found: dict[Axis, Padded] = {}
    places = range(len(parts) + 1)
    inside = [(i, j) for i in places for j in places if ax.from_pieces(parts[i:j]) == tokens]
    for start, stop in inside[:1]:
        for first in range(start + 1):
            for last in range(stop, len(parts) + 1):
                before, behind = (
                    sum(p.size for p in some) for some in (parts[first:start], parts[stop:last])
                )
                if before or behind:
                    found[ax.from_pieces(parts[first:last])] = run, (before, behind)
    return found


def _segments(found: Sequence[Residual], axis: Axis, patch: Interval) -> list[Interval]:
    """The finest parts of the patches that attentions see apart, if all are of one size."""
    bounds = {patch.start, patch.stop}
    for core in (a for r in found for a in r.attentions if a.columns != axis):
        parts = ax.pieces(core.columns)
        if len(parts) != 1 or parts[0].axis != patch.axis or core.rows != core.columns:
            return [patch]
        bounds |= {parts[0].start, parts[0].stop}
    marks = sorted(bounds)
    found_parts = [Interval(patch.axis, a, b) for a, b in pairwise(marks)]
    equal = len({p.size for p in found_parts}) == 1 and marks[0] == patch.start
    return found_parts if equal and len(found_parts) <= _MOST_SEGMENTS else [patch]


def _stated(
    pieces: tuple[Interval, ...], patch: int, more: int
) -> tuple[tuple[Interval, ...], int]:
    """Count the first `more` patches as fixed tokens."""
    if more == 0:
        return pieces, patch
    part = pieces[patch]
    middle = part.start + more
    cut = (Interval(part.axis, part.start, middle), Interval(part.axis, middle, part.stop))
    return (*pieces[:patch], *cut, *pieces[patch + 1 :]), patch + 1


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
