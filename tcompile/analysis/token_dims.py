"""Dims of a tensor in terms of the token space: which hold tokens, and how many are left.

Also the layout of a residual stream: what brings it to [batch, tokens, features].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axes, Axis, Digit
from tcompile.analysis.space import TokenSpace


@dataclass(frozen=True)
class Run:
    """Consecutive parts [first, last) of the token space."""

    first: int
    last: int

    def has_patches(self, space: TokenSpace) -> bool:
        """Return whether the patches are among them."""
        return self.first < space.end and space.patch < self.last

    def size(self, space: TokenSpace, count: int) -> int:
        """Tokens in the run when `count` patch tokens are left."""
        sizes = (
            count // space.segments if space.patch <= i < space.end else space.pieces[i].size
            for i in range(self.first, self.last)
        )
        return sum(sizes)


#: What a dim holds of its run: every token; one position for each group of patches; or nothing
#: (size 1), because an earlier dim of the same grid holds the tokens.
Part = Literal["tokens", "groups", "rest"]


@dataclass(frozen=True)
class Dim:
    """A dim as factor × (batch) × (tokens of a run), in another order if `order` names one.

    `extent` is the size of the batches in it: a free one's as `dim_to_int` gives it. `others` is
    how many keys that are no tokens stand before the run and behind it.
    """

    factor: int
    batch: bool
    run: Run | None
    part: Part = "tokens"
    order: str = ""
    extent: int = 1
    others: tuple[int, int] = (0, 0)

    def has_patches(self, space: TokenSpace) -> bool:
        """Return whether the patches are in its run."""
        return self.run is not None and self.run.has_patches(space)

    def size(self, space: TokenSpace, count: int, batch: int) -> int:
        tokens = self.run.size(space, count) if self.run and self.part != "rest" else 1
        if self.part == "groups":
            assert space.grouping is not None
            tokens = count // space.grouping.members
        tokens += sum(self.others)
        return self.factor * tokens * (batch if self.batch else 1)


Dims = tuple[Dim | None, ...]


def is_rest(dim: Dim | None) -> bool:
    """Return whether an earlier dim of the same grid holds the tokens."""
    return dim is not None and dim.part == "rest"


def span_of(dims: Dims, axis: int) -> int:
    """The number of neighbouring dims that the tokens which begin at `axis` are spread over."""
    end = axis + 1
    while end < len(dims) and is_rest(dims[end]):
        end += 1
    return end - axis


def locate(axes: Axes, space: TokenSpace) -> Dims:
    """Express the dims of a tensor in terms of the token space; None where one cuts through it.

    Tokens spread over neighbouring dims, such as a grid (h, w), lie in the first of them: the
    others have size 1 once tokens have left.
    """
    known: Dims | None = space.located.get(axes)
    if known is None:
        known = space.located[axes] = _located(axes, space)
    return known


def _located(axes: Axes, space: TokenSpace) -> Dims:
    found: list[Dim | None] = []
    while len(found) < len(axes):
        rest = axes[len(found) :]
        spread = _spread(rest, space)
        found += spread or [_one(rest[0], space)]
    return tuple(found)


def _spread(axes: Axes, space: TokenSpace) -> list[Dim | None] | None:
    """The dims at the head of `axes` if together they are just a run of tokens or groups."""
    if not axes[0] or _one(axes[0], space) is not None:
        return None
    joined: tuple[Digit, ...] = axes[0]
    for width, axis in enumerate(axes[1:], 2):
        if not axis:
            return None
        joined += axis
        whole = _match(ax.normal(joined), space)
        if whole is not None and whole[2] == len(ax.normal(joined)) and whole[4] == (0, 0):
            run, part, _, order, _ = whole
            return [Dim(1, False, run, part, order), *[Dim(1, False, run, "rest")] * (width - 1)]
    return None


def _one(axis: Axis, space: TokenSpace) -> Dim | None:
    """One dim by itself."""
    factor, extent, run = 1, 1, None
    part: Part = "tokens"
    order, others = "", (0, 0)
    inside = ax.roots(space.axis)
    members = set(space.grouping.inner) if space.grouping else set()
    i = 0
    while i < len(axis):
        digit = axis[i]
        found = _match(axis[i:], space)
        if found is not None:
            if run is not None:
                return None
            run, part, width, order, others = found
            i += width
            continue
        if digit in members:
            factor *= digit.size
        elif not inside.isdisjoint(ax.below(digit.root)):
            return None
        elif digit.root.kind == "batch":
            extent *= digit.size
        else:
            factor *= digit.size
        i += 1
    return Dim(factor, extent > 1, run, part, order, extent, others)


#: A run, how it is there, the digits that it takes, its order, and the keys beside it.
_Found: TypeAlias = tuple[Run, Part, int, str, tuple[int, int]]


def _match(axis: Axis, space: TokenSpace) -> _Found | None:
    """The run that the head of the axis spells."""
    for width in range(len(axis), 0, -1):
        found = space.runs.get(axis[:width])
        if found is not None:
            return Run(*found), "tokens", width, "", (0, 0)
        among = space.padded.get(axis[:width])
        if among is not None:
            return Run(*among[0]), "tokens", width, "", among[1]
    if space.grouping is not None:
        width = len(space.grouping.outer)
        if axis[:width] == space.grouping.outer:
            return Run(space.patch, space.end), "groups", width, "", (0, 0)
    order = space.orders.get(axis[:1])
    if order is not None:
        part: Part = "groups" if order.groups else "tokens"
        return Run(space.patch, space.end), part, 1, order.name, (0, 0)
    return None


@dataclass(frozen=True)
class Layout:
    """The places of a stream's axes.

    Attributes:
        batch: the batch axis; None where there is none (packed tokens).
        tokens: the neighbouring axes that hold the tokens, a grid's or one.
        features: the feature axis.
    """

    batch: int | None
    tokens: tuple[int, ...]
    features: int

    @property
    def order(self) -> tuple[int, ...]:
        """The permutation to (batch,) tokens, features."""
        head = () if self.batch is None else (self.batch,)
        return (*head, *self.tokens, self.features)


def stream_layout(axes: Axes, space: TokenSpace) -> Layout | None:
    """The layout of a stream that carries all tokens; None where it is another."""
    dims = locate(axes, space)
    whole = Run(0, len(space.pieces))
    tokens = [i for i, d in enumerate(dims) if d is not None and d.run == whole]
    others: list[tuple[int, Dim]] = []
    for i, dim in enumerate(dims):
        if dim is None or dim.part == "groups" or dim.others != (0, 0):
            return None
        if i in tokens and (dim.batch or dim.factor != 1):
            return None
        if i not in tokens:
            others.append((i, dim))
    batches = [i for i, d in others if d.batch]
    plain = [i for i, d in others if not d.batch]
    if not batches and len(plain) == 2:
        # A literal batch of 1 has no digit to be known by.
        batches = [i for i in plain if ax.size(axes[i]) == 1][:1]
        plain = [i for i in plain if i not in batches]
    if not tokens or len(batches) > 1 or len(plain) != 1:
        return None
    return Layout(batches[0] if batches else None, tuple(tokens), plain[0])
