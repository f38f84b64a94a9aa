"""Tables with a value for each pair of positions: by how far they lie apart, if that is all.

A bias [rows of queries, columns of queries, rows of keys, columns of keys] that depends on the two
differences only is a table [2h − 1, 2w − 1] read at them. That table is what models interpolate.
Any other one is interpolated along all its axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcompile.passes.resize.rules import Array, resampled


def resized_pairs(pairs: Array, first: int, new: Sequence[int], rule: str) -> tuple[Array, str]:
    """The values for pairs of positions on another grid, and how they were made.

    Args:
        pairs: [..., *old, *old]: of queries, then of keys.
        first: the axis at which the grids begin.
        new: their sizes now.
    """
    many = len(new)
    old = pairs.shape[first : first + many]
    table = _by_difference(pairs, first, old)
    if table is None:
        for i, size in enumerate((*new, *new)):
            pairs = resampled(pairs, first + i, size, rule)
        return pairs, f"interpolated pair by pair ({rule})"
    for i, size in enumerate(new):
        table = resampled(table, first + i, 2 * size - 1, rule)
    return _read(table, first, new), f"table of relative positions interpolated ({rule})"


def _by_difference(pairs: Array, first: int, old: Sequence[int]) -> Array | None:
    """[..., 2h − 1, 2w − 1]: the values by difference; None where they depend on more."""
    many = len(old)
    # The difference d = query − key is met first at query max(d, 0), key max(−d, 0).
    apart = [np.arange(1 - n, n) for n in old]
    grid = np.meshgrid(*apart, indexing="ij")
    places = (*(np.maximum(d, 0) for d in grid), *(np.maximum(-d, 0) for d in grid))
    table = np.moveaxis(pairs, range(first), range(-first, 0))[places]
    table = np.moveaxis(table, range(many), range(first, first + many))
    return table if np.array_equal(_read(table, first, old), pairs) else None


def _read(table: Array, first: int, sizes: Sequence[int]) -> Array:
    """The table read at the difference of every pair."""
    many = len(sizes)
    index = np.indices((*sizes, *sizes))
    places = tuple(index[i] - index[many + i] + n - 1 for i, n in enumerate(sizes))
    found = np.moveaxis(table, range(first), range(-first, 0))[places]
    return np.moveaxis(found, range(2 * many), range(first, first + 2 * many))
