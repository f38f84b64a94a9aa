"""Stored tables with positions of the grid along some dims: the same tables for another grid.

A table is taken apart into the digits of its dims: rows and columns, wherever they lie and however
they are split into windows, are each one axis then, along which it is resampled. Prefix tokens keep
their rows. Two grids, of queries and of keys, are a table of relative positions if the values
depend on differences only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axis, Digit, Root
from tcompile.passes.resize.relative import resized_pairs
from tcompile.passes.resize.rules import Array, Rules, resampled
from tcompile.passes.resize.sizes import GridError, Sizes


@dataclass(frozen=True)
class Chain:
    """The digits that make up a whole index set, and where they are among all digits."""

    root: Root
    places: tuple[int, ...]
    old: int
    new: int


Resample: TypeAlias = Callable[[Any, int, Sequence[Chain]], tuple[Any, str]]


def resized(
    values: Array, axes: Sequence[Axis], sizes: Sizes, resample: Resample
) -> tuple[Array, str]:
    """A table for another grid, and how it was made.

    Args:
        axes: what each dim of it is joined with.
        resample: gives the values [rest, grid] on the new grid, whose axes begin at a number.

    Raises:
        GridError: its rows do not follow from a grid.
    """
    for i, axis in enumerate(axes):
        parts = ax.pieces(axis)
        if len(parts) > 1 and sizes.changes(axis):
            return _of_parts(values, axes, i, parts, sizes, resample)
    digits: list[Digit] = []
    for size, axis in zip(values.shape, axes, strict=True):
        # A dim of size 1 is broadcast along what it is joined with.
        digits += axis if ax.size(axis) == size else ax.new("one", size, "untracked")
    chains = _chains(digits, sizes)
    taken = [p for c in chains for p in c.places]
    rest = [p for p in range(len(digits)) if p not in taken]
    apart = values.reshape([d.size for d in digits] or values.shape)
    grids = apart.transpose([*rest, *taken]) if digits else apart
    grids = grids.reshape([*(digits[p].size for p in rest), *(c.old for c in chains)])
    found, words = resample(grids, len(rest), chains) if chains else (grids, "")
    back = found.reshape(
        [*(digits[p].size for p in rest), *(sizes.of_digit(digits[p]) for p in taken)]
    )
    back = back.transpose(np.argsort([*rest, *taken])) if digits else back
    dims = [sizes.of(a) if ax.size(a) == n else n for n, a in zip(values.shape, axes, strict=True)]
    return np.ascontiguousarray(back.reshape(dims)), words


def _of_parts(
    values: Array,
    axes: Sequence[Axis],
    place: int,
    parts: Sequence[ax.Interval],
    sizes: Sizes,
    resample: Resample,
) -> tuple[Array, str]:
    """Resize each part of a concatenation by itself: prefix tokens, patches."""
    found, words, start = [], "", 0
    for part in parts:
        own = values.take(range(start, start + part.size), place)
        start += part.size
        if not sizes.changes(part.axis) or part.full:
            inner = [*axes[:place], ax.sliced(part.axis, part.start, part.stop), *axes[place + 1 :]]
            own, how = resized(own, inner, sizes, resample)
            words = words or how
            found.append(own)
        else:
            sizes.of_interval(part)  # says why not
    return np.concatenate(found, place), words


def _chains(digits: Sequence[Digit], sizes: Sizes) -> list[Chain]:
    """The whole index sets among the digits whose size changes, in the order of their first.

    Raises:
        GridError: only a part of one is there.
    """
    moving = [
        (i, d) for i, d in enumerate(digits) if sizes.of_root(d.root) != d.root.size and d.size > 1
    ]
    found: list[Chain] = []
    while moving:
        first = next((m for m in moving if m[1].stride * m[1].size == m[1].root.size), None)
        if first is None:
            # Places within a window are the same on every grid.
            break
        chain = [first]
        unit = sizes.units.get(first[1].root, 1)
        while chain[-1][1].stride > unit:
            last = chain[-1][1]
            after = [
                m
                for m in moving
                if m[1].root == last.root and m[1].stride * m[1].size == last.stride
            ]
            if not after:
                raise GridError(
                    f"a table has a row for each window of {last.stride} positions, which cannot "
                    "be had for other windows"
                )
            chain.append(after[0])
        moving = [m for m in moving if m not in chain]
        root = first[1].root
        old, new = root.size // unit, sizes.of_root(root) // unit
        found.append(Chain(root, tuple(p for p, _ in chain), old, new))
    return found


def shaped(grids: Array, first: int, chains: Sequence[Chain]) -> tuple[Array, str]:
    """Zeros in the place of the values on another grid: to see whether a model can be had on it."""
    _check_values(grids, range(first, first + len(chains)))
    return np.broadcast_to(
        grids.dtype.type(0), (*grids.shape[:first], *(c.new for c in chains))
    ), ""


def _check_values(grids: Array, axes: range) -> Array | None:
    """The values at the first position where they are the same at all; else None.

    Raises:
        GridError: they differ, and cannot be interpolated.
    """
    head = grids[tuple(slice(0, 1) if a in axes else slice(None) for a in range(grids.ndim))]
    if (grids == head).all():
        return head
    if grids.dtype.kind != "f" or not np.isfinite(grids).all():
        raise GridError("a mask or a table of whole numbers differs from place to place")
    return None


def along(grids: Array, first: int, chains: Sequence[Chain], rules: Rules) -> tuple[Array, str]:
    """Resample the axes from `first` on, by the rules of positions."""
    axes = range(first, first + len(chains))
    head = _check_values(grids, axes)
    if head is not None:
        dims = [*grids.shape[:first], *(c.new for c in chains)]
        return np.broadcast_to(head, dims), ""
    half = len(chains) // 2
    if [c.root for c in chains[:half]] == [c.root for c in chains[half:]]:
        return resized_pairs(grids, first, [c.new for c in chains[:half]], rules.relative)
    for axis, chain in zip(axes, chains, strict=True):
        grids = resampled(grids, axis, chain.new, rules.table)
    return grids, f"interpolated ({rules.table})"
