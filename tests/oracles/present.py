"""Tensors of a dense file of which some tokens have left, and sums over those that are there.

Part of the counting oracle (tests/oracles/present_walk.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import prod
from typing import Any

import numpy as np

from tests.oracles.dense_file import InapplicableError

Array = np.ndarray[Any, Any]

#: Relative difference at which a literal is a count.
CLOSE = 1e-5


class IllegalError(Exception):
    """The model has no meaning with these tokens gone: it should have been refused."""


@dataclass(frozen=True)
class Total:
    """A sum over tokens, which is still to be divided by how many there are.

    Attributes:
        dense, left: how many the sum goes over in the dense file, and now.
        degree: 1 for a sum, 0.5 for its root.
        counted: whether it was divided, as a mean is from the start.
        vague: whether it was multiplied by something that may be a count, for all one can tell.
        tokens: [B, dense], those that are left.
        others: tensors that multiplied the tokens, in which a mask may be.
        powers: whether it is a sum of exponentials, which a softmax by hand divides by.
    """

    dense: int
    left: int
    degree: float = 1.0
    counted: bool = False
    vague: bool = False
    tokens: Array | None = field(default=None, compare=False, repr=False)
    others: tuple[str, ...] = ()
    powers: bool = False

    def same(self, other: Total | None) -> bool:
        return other is not None and (self.dense, self.left) == (other.dense, other.left)

    def times(self, literal: float) -> tuple[Total, float]:
        """This multiplied by a literal, and what it has to be multiplied by besides."""
        n, k = float(self.dense), float(self.left)
        less = (k - 1) if k > 1 else float("nan")
        counts = [(1 / n, 1 / k, True), (1 / (n - 1), 1 / less, True)]
        if self.counted:
            counts = [(n / (n - 1), k / less, True), (n, k, False), (n - 1, less, False)]
        for was, now, counted in counts:
            if abs(literal / was**self.degree - 1) < CLOSE:
                return replace(self, counted=counted), (now / was) ** self.degree
        return (self if self.counted else replace(self, vague=abs(literal) != 1)), 1.0

    def settle(self, where: str) -> None:
        """Raises IllegalError where nothing counted the tokens of this sum, InapplicableError where
        one cannot tell."""
        if self.counted or not self.degree:
            return
        text = f"{where}: a sum over {self.left} of {self.dense} tokens that nothing counts"
        raise InapplicableError(text) if self.vague else IllegalError(text)


@dataclass(frozen=True)
class Held:
    """A tensor.

    Attributes:
        value: in its dense shape, floats as float64; 0 where nothing is there.
        there: of the same shape, or None where everything is.
        fixed: whether no input of the model decides it.
        now: of integers that are sizes, what they are with tokens gone; None: the same.
        shape_of: whether these are all the sizes of a tensor, its name.
        count: whether it follows how many tokens there are.
        total: of a sum over tokens.
        others: tensors that multiplied it, which know nothing of tokens that left.
        by: literals that multiplied it.
        share: whether it is made of probabilities, rounded or moved.
        logs: whether these are logarithms of probabilities.
        powers: whether these are exponentials.
        weighed: whether these are values times probabilities, which only a sum is missing.
    """

    value: Array
    there: Array | None = None
    fixed: bool = False
    now: Array | None = None
    shape_of: str = ""
    count: bool = False
    total: Total | None = None
    others: tuple[str, ...] = ()
    by: tuple[float, ...] = ()
    share: bool = False
    logs: bool = False
    powers: bool = False
    weighed: bool = False

    @property
    def full(self) -> Array:
        return np.ones(self.value.shape, bool) if self.there is None else self.there

    @property
    def plain(self) -> bool:
        """Return whether it has nothing to do with tokens that left."""
        return self.there is None and self.now is None and self.total is None and not self.count

    @property
    def literal(self) -> float | None:
        """The one number that a constant is made of."""
        if not self.fixed or not self.value.size or self.value.dtype.kind not in "fiu":
            return None
        first = float(self.value.flat[0])
        return first if first and (self.value == self.value.flat[0]).all() else None

    def filled(self, value: float) -> Array:
        if self.there is None:
            return self.value
        return np.where(self.there, self.value, np.asarray(value, self.value.dtype))


def kept(value: Array, there: Array | None, **more: Any) -> Held:
    """A tensor, with zeros where nothing is there."""
    value = np.asarray(value)
    if there is None or there.all():
        return Held(value, None, **more)
    return Held(np.where(there, value, np.zeros((), value.dtype)), there, **more)


def even(counts: Array, where: str) -> int:
    """Return how many each sum goes over; raises IllegalError where that is not the same
    everywhere."""
    found = np.unique(counts[counts > 0])
    if len(found) > 1:
        raise IllegalError(f"{where}: over {found.tolist()} of them, another number each time")
    return int(found[0]) if len(found) else 0


def joined(parts: Sequence[Held], where: str) -> Array | None:
    """Return where every operand of an elementwise op is there.

    Raises IllegalError where two operands have other tokens at the same places.
    """
    there = [p.there for p in parts if p.there is not None]
    if not there:
        return None
    for a, b in combinations(there, 2):
        x, y = np.broadcast_arrays(a, b)
        outer = x.shape != a.shape and x.shape != b.shape
        if not outer and (x & ~y).any() and (y & ~x).any():
            raise IllegalError(f"{where}: joins tokens that are not the same")
    shape = np.broadcast_shapes(*(p.value.shape for p in parts))
    return np.logical_and.reduce([np.broadcast_to(t, shape) for t in there])


def reduced(data: Held, axes: tuple[int, ...], kind: str, keepdims: bool, where: str) -> Held:
    """A reduction over what is there. kind: Mean, Sum, Max, ..., as in ReduceMean."""
    size = prod(data.value.shape[a] for a in axes)
    counts = data.full.sum(axes, keepdims=True)
    left = even(counts, where) if data.there is not None else size
    value, there = _numbers(kind, data, axes, np.maximum(counts, 1)), counts > 0
    if not keepdims:
        value, there = np.squeeze(value, axes), np.squeeze(there, axes)
    total = None
    if left != size and not (data.weighed and kind == "Sum"):
        total = birth(kind, size, left, data, axes)
        for literal in data.by if total is not None and not total.counted else ():
            assert total is not None
            total, more = total.times(literal)
            value = value * more
    return kept(value, there if data.there is not None else None, total=total)


def _numbers(kind: str, data: Held, axes: tuple[int, ...], count: Array) -> Array:
    x, over = data.filled(0), {"axis": axes, "keepdims": True}
    if kind == "Mean":
        return np.asarray(x.sum(**over) / count)
    if kind == "Sum":
        return np.asarray(x.sum(**over))
    if kind in ("Max", "Min") and (x.dtype.kind == "f" or data.there is None):
        if kind == "Max":
            return np.asarray(data.filled(-np.inf).max(**over))
        return np.asarray(data.filled(np.inf).min(**over))
    if kind == "L1":
        return np.asarray(np.abs(x).sum(**over))
    if kind in ("SumSquare", "L2"):
        squares = (x * x).sum(**over)
        return np.asarray(squares if kind == "SumSquare" else np.sqrt(squares))
    if kind == "Prod":
        return np.asarray(data.filled(1).prod(**over))
    raise InapplicableError(f"Reduce{kind}")


def birth(kind: str, size: int, left: int, data: Held, axes: tuple[int, ...]) -> Total | None:
    """Return what a reduction over tokens has to be divided by."""
    if kind not in ("Mean", "Sum", "L1", "SumSquare", "L2"):
        return None
    degree = 0.5 if kind == "L2" else 1.0
    rows = np.moveaxis(data.full, axes, range(-len(axes), 0))
    rows = rows.reshape(*rows.shape[: rows.ndim - len(axes)], size)
    tokens = rows.any(tuple(range(1, rows.ndim - 1))) if rows.ndim > 1 else None
    return Total(
        size, left, degree, kind == "Mean", tokens=tokens, others=data.others, powers=data.powers
    )


def contracted(equation: str, a: Held, b: Held, where: str) -> tuple[Held, int, int]:
    """A product (np.einsum) over what is there, and how many each sum goes over now and before."""
    value = np.einsum(equation, a.filled(0), b.filled(0), optimize=True)
    ones = [np.ones(x.value.shape) for x in (a, b)]
    size = round(float(np.einsum(equation, *ones, optimize=True).max(initial=0)))
    if a.there is None and b.there is None:
        return Held(value), size, size
    there = [x.full.astype(float) for x in (a, b)]
    both, one, two = (
        np.rint(np.einsum(equation, *pair, optimize=True)).astype(int)
        for pair in ((there[0], there[1]), (there[0], ones[1]), (ones[0], there[1]))
    )
    lost = (both == 0) & (one > 0) & (two > 0)
    other = [(both > 0) & (each < size) & (each != both) for each in (one, two)]
    if lost.any() or any(clash.any() for clash in other):
        raise IllegalError(f"{where}: multiplies tokens that are not the same")
    return kept(value, both > 0), even(both, where) or size, size
