"""Places of the tokens of a grid."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from tcompile.passes.reduce.reducers.base import Grid


def planes(grid: Grid, count: int) -> Grid:
    """(frames, rows, columns) of so many tokens; empty where they are in no grid."""
    # Of a segment of the tokens, such as a frame, the grid is that of one.
    found = grid if prod(grid) == count else grid[1:]
    if len(found) not in (2, 3) or prod(found) != count:
        return ()
    return (1, *found) if len(found) == 2 else found


def cells(grid: Grid, high: int, wide: int) -> np.ndarray[Any, Any]:
    """[n, high·wide]: the tokens of each whole cell of (frames, rows, columns), row by row."""
    frames, h, w = grid[0], grid[1] // high, grid[2] // wide
    places = np.arange(prod(grid)).reshape(grid)[:, : h * high, : w * wide]
    parts = places.reshape(frames, h, high, w, wide).transpose(0, 1, 3, 2, 4)
    return np.asarray(parts.reshape(frames * h * w, high * wide))


def beside(grid: Grid, neighbours: int) -> np.ndarray[Any, Any]:
    """[T, T] bool: the 8 or 4 neighbours of each token of (frames, rows, columns), in its frame."""
    frame, row, column = np.indices(grid).reshape(3, -1)
    down, across = (abs(n[:, None] - n) for n in (row, column))
    far = down + across if neighbours == 4 else np.maximum(down, across)
    return np.asarray((far == 1) & (frame[:, None] == frame))


def nearest(choices: list[int], keep: int) -> str:
    """The possible counts next to the one asked for, in words."""
    below, above = ([c for c in choices if c < keep], [c for c in choices if c > keep])
    return " or ".join(str(c) for c in [*below[-1:], *above[:1]]) or "no other count"
