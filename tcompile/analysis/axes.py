"""The algebra of axes: what index set a tensor's axis runs over, and how views split and join it.

An `Axis` is a row-major product of `Digit`s; the empty product is an axis of size 1. A digit is
one digit of the mixed-radix expansion of a `Root`, the index set that some op introduced:
`index = (root index // stride) % size`. So Reshape can split `w` into `(w//7, w%7)` and join the
two again, and the algebra notices. A root made by Concat is a list of `Interval`s of other axes, so
that slicing it gives back exactly what was concatenated: prefix and patches stay apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Literal

#: `batch`: the batch. `data`: born from an input's or a convolution's spatial axis. `fixed`: the
#: positions of a side input that does not depend on the image (CLS, registers).
#: `untracked`: features, heads, axes of weights, whose identity nothing depends on.
Kind = Literal["batch", "data", "fixed", "untracked"]


@dataclass(frozen=True)
class Interval:
    """The interval [start, stop) of an axis, as one part of a concatenation."""

    axis: tuple[Digit, ...]
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def full(self) -> bool:
        return self.start == 0 and self.stop == size(self.axis)

    @property
    def fixed(self) -> bool:
        """Return whether these positions hold prefix tokens."""
        return any(d.root.kind == "fixed" for d in self.axis)


@dataclass(frozen=True)
class Root:
    """An index set. Roots of concatenations are equal when their pieces are.

    Attributes:
        pieces: what it was concatenated from.
        union: what it was concatenated from where that is one set by now, which no slice takes
            apart again.
    """

    name: str
    size: int
    kind: Kind
    pieces: tuple[Interval, ...] = ()
    union: tuple[Interval, ...] = ()
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        own = (self.name, self.size, self.kind, self.pieces, self.union)
        object.__setattr__(self, "_hash", hash(own))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True)
class Digit:
    """(index // stride) % size of a root's index."""

    root: Root
    stride: int
    size: int

    @property
    def whole(self) -> bool:
        return self.stride == 1 and self.size == self.root.size


Axis = tuple[Digit, ...]
Axes = tuple[Axis, ...]
ONE: Axis = ()


def new(name: str, length: int, kind: Kind, pieces: tuple[Interval, ...] = ()) -> Axis:
    """A fresh axis of its own root. Size 1 keeps its identity only where it is a prefix token."""
    if length == 1 and kind != "fixed":
        return ONE
    return (Digit(Root(name, length, kind, pieces), 1, length),)


def size(axis: Axis) -> int:
    """The number of positions of the axis."""
    return prod(d.size for d in axis)


def tracked(axis: Axis) -> bool:
    """Return whether the axis runs over batch, image positions or tokens, not over features."""
    return any(d.root.kind != "untracked" for d in axis)


def has_batch(axis: Axis) -> bool:
    """Return whether batch is a factor of the axis."""
    return any(d.root.kind == "batch" for d in axis)


def roots(axis: Axis) -> set[Root]:
    """Every root the axis stands on, through concatenations."""
    return set().union(*(below(digit.root) for digit in axis))


@lru_cache(maxsize=1 << 14)
def below(root: Root) -> frozenset[Root]:
    """The root and those that it was concatenated from."""
    pieces = (*root.pieces, *root.union)
    return frozenset({root}).union(*(roots(piece.axis) for piece in pieces))


def normal(digits: Iterable[Digit]) -> Axis:
    """Join neighbouring digits that are one digit of one root."""
    out: list[Digit] = []
    for digit in digits:
        last = out[-1] if out else None
        if last and last.root == digit.root and last.stride == digit.stride * digit.size:
            out[-1] = Digit(digit.root, digit.stride, last.size * digit.size)
        else:
            out.append(digit)
    return tuple(out)


def regroup(axes: Sequence[Axis], dims: Sequence[int]) -> Axes | None:
    """Reshape: the same digits under new dims, splitting a digit where it divides.

    Returns None where a new dim cuts across digits, so that no product describes it, and of
    tensors that hold nothing.
    """
    pending = [d for axis in axes for d in axis]
    if 0 in dims or any(d.size == 0 for d in pending):
        return None
    pending.reverse()
    result: list[Axis] = []
    for dim in dims:
        taken: list[Digit] = []
        if dim == 1:
            if pending and pending[-1].size == 1:
                taken.append(pending.pop())
            result.append(tuple(taken))
            continue
        room = dim
        while room > 1:
            if not pending:
                return None
            digit = pending.pop()
            if digit.size == 1:
                continue
            if room % digit.size == 0:
                taken.append(digit)
                room //= digit.size
            elif digit.size % room == 0:
                rest = digit.size // room
                taken.append(Digit(digit.root, digit.stride * rest, room))
                pending.append(Digit(digit.root, digit.stride, rest))
                room = 1
            else:
                return None
        result.append(normal(taken))
    return tuple(result) if all(d.size == 1 for d in pending) else None


def pieces(axis: Axis) -> tuple[Interval, ...]:
    """The parts that the axis was concatenated from; an axis that was not is one part."""
    if len(axis) == 1 and axis[0].whole and axis[0].root.pieces:
        return axis[0].root.pieces
    return (Interval(axis, 0, size(axis)),)


def from_pieces(parts: Sequence[Interval]) -> Axis:
    """The concatenation of the parts; one that gives back a whole axis is that axis."""
    merged: list[Interval] = []
    for part in parts:
        if part.size == 0:
            continue
        last = merged[-1] if merged else None
        if last and last.axis == part.axis and last.stop == part.start:
            merged[-1] = Interval(part.axis, last.start, part.stop)
        else:
            merged.append(part)
    if len(merged) == 1 and merged[0].full:
        return merged[0].axis
    length = sum(p.size for p in merged)
    kinds = {d.root.kind for p in merged for d in p.axis}
    kind: Kind = "data" if "data" in kinds or "batch" in kinds else "untracked"
    if kinds == {"fixed"}:
        kind = "fixed"
    return new("concat", length, kind, tuple(merged))


def concat(axes: Sequence[Axis]) -> Axis:
    """The axis of a concatenation along it."""
    return from_pieces([p for axis in axes for p in pieces(axis)])


def sliced(axis: Axis, start: int, stop: int) -> Axis:
    """Positions [start, stop) of the axis."""
    taken: list[Interval] = []
    offset = 0
    for part in pieces(axis):
        low, high = max(start, offset), min(stop, offset + part.size)
        if low < high:
            base = part.start - offset
            taken.append(Interval(part.axis, low + base, high + base))
        offset += part.size
    return from_pieces(taken) if taken else ONE


def coarse(axis: Axis, step: int) -> Axis | None:
    """Every `step` neighbours as one position; None where `step` does not divide the last digit."""
    if not axis or axis[-1].size % step:
        return None
    last = axis[-1]
    head = axis[:-1]
    return (
        head
        if last.size == step
        else (*head, Digit(last.root, last.stride * step, last.size // step))
    )


def unify(a: Axis, b: Axis) -> tuple[Axis, bool]:
    """The axis of an elementwise result, and whether the operands contradict each other."""
    if a == b:
        return a, False
    if size(a) == 1 or size(b) == 1:
        if size(a) == size(b):
            return (a or b), False
        return (b if size(a) == 1 else a), False
    if _alike_but_fixed(a, b):
        return a, False
    if not tracked(a):
        return b, False
    if not tracked(b):
        return a, False
    # (batch, heads) of two computations: the heads have two names, which nothing depends on.
    known = [[(i, d) for i, d in enumerate(x) if d.root.kind != "untracked"] for x in (a, b)]
    same_sizes = [d.size for d in a] == [d.size for d in b]
    return a, not (same_sizes and known[0] == known[1])


def _alike_but_fixed(a: Axis, b: Axis) -> bool:
    """Return whether two concatenations differ in fixed parts only, one for one (learned rows of
    keys and those of values)."""
    pairs = list(zip(pieces(a), pieces(b), strict=False))
    return len(pairs) == len(pieces(a)) == len(pieces(b)) > 1 and all(
        p == q or (p.fixed and q.fixed and p.size == q.size) for p, q in pairs
    )


def show(axis: Axis) -> str:
    """For messages: `(h=14, w=14)`."""
    if not axis:
        return "1"
    names = [f"{d.root.name.rsplit('/', 1)[-1]}={d.size}" for d in axis]
    return "(" + ", ".join(names) + ")" if len(names) > 1 else names[0]
