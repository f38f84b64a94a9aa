"""Which tokens `topk` keeps where rows, windows or frames have a say (R1 by row, R8)."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.passes.reduce.reducers.base import Ask, Grid, ReducerInput
from tcompile.passes.reduce.reducers.common import ascending, choose, for_all, scored, sorts
from tcompile.passes.reduce.reducers.grids import cells, nearest, planes

#: DyCoke: frames in a group, the first of which stays whole.
FRAMES = 4


def chosen(given: ReducerInput) -> gs.Tensor:
    """[B, K] i64, ascending: the K best;

    * unit=row: the K/w rows of the grid with the largest sums, whole (FoPru);
    * within=[h, w]: as many of each h × w window of the grid (R8);
    * within=frames: the first of every four frames whole, as many of each other frame (DyCoke).
    """
    parameters, grid = given.parameters, planes(given.grid, given.stage.count)
    within = parameters["within"]
    if parameters["unit"] == "row":
        return _rows(given, grid)
    if within is None:
        return choose(given, given.keep)
    if within == "frames":
        whole, others = _frames(grid)
        first = for_all(given, whole.reshape(-1))
        best = _each(given, others, given.keep - whole.size)
        index = given.b.concat([first, best], 1)
    else:
        index = _each(given, cells(grid, *within), given.keep)
    return ascending(given.b, index, given.keep)[0]


def _rows(given: ReducerInput, grid: Grid) -> gs.Tensor:
    b, wide = given.b, grid[2]
    each = b.reshape(scored(given), [0, grid[0] * grid[1], wide])
    best = b.call(
        "TcTopKTokens", b.reduce("Sum", each, [2]), dtypes=[np.int64], k=given.keep // wide
    )[0]
    first = b.unsqueeze(b.op("Mul", best, [wide], dtype=np.int64), 2)
    index = b.op("Add", first, b.const(np.arange(wide).reshape(1, 1, -1)), dtype=np.int64)
    return b.reshape(index, [0, given.keep])


def _each(given: ReducerInput, table: np.ndarray, count: int) -> gs.Tensor:
    """[B, count] i64: the best of each row of the table [n, m], count/n of them."""
    b, (n, m) = given.b, table.shape
    lined = b.op("Gather", scored(given), b.const(table.reshape(-1)), axis=1)
    _, best = b.nodes(
        "TopK",
        [b.reshape(lined, [0, n, m]), [count // n]],
        [np.float32, np.int64],
        axis=-1,
        largest=1,
        sorted=1,
    )
    place = b.op("Add", best, b.const(m * np.arange(n).reshape(1, -1, 1)), dtype=np.int64)
    index = b.op("Gather", b.const(table.reshape(-1)), place, dtype=np.int64, axis=0)
    return b.reshape(index, [0, count])


def _frames(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """[whole frames, S] and [other frames, S]: their tokens."""
    places = np.arange(prod(grid)).reshape(grid[0], -1)
    return places[::FRAMES], places[np.arange(grid[0]) % FRAMES > 0]


def problem(ask: Ask) -> str:
    """Why as many cannot be kept so; empty if they can."""
    unit, within = ask.parameters["unit"], ask.parameters["within"]
    if unit == "token" and within is None:
        return ""
    grid = planes(ask.grid, ask.count)
    if unit == "row":
        if within is not None:
            return "unit=row and within do not go together"
        if not grid:
            return "whole rows need tokens that are a grid, which these are not"
        return _steps(ask, 0, grid[2], f"whole rows of {grid[2]} tokens are kept")
    if within == "frames":
        if len(ask.grid) != 3 or not grid:
            return "within=frames needs the tokens of a video, frame by frame, which these are not"
        whole, others = _frames(grid)
        words = f"{len(whole)} frames are kept whole, and as many tokens of each other one"
        return _steps(ask, whole.size, len(others), words) or sorts(ask.keep)
    if not (isinstance(within, list) and len(within) == 2 and all(_side(n) for n in within)):
        return f'within is [rows, columns] of a window or "frames", not {within!r}'
    high, wide = within
    if not grid or grid[1] % high or grid[2] % wide:
        return (
            f"windows of {high} x {wide} do not tile what these tokens are: "
            f"{' x '.join(map(str, ask.grid)) or 'no grid'}"
        )
    windows = len(cells(grid, high, wide))
    return _steps(
        ask, 0, windows, f"as many tokens are kept of each of {windows} windows"
    ) or sorts(ask.keep)


def _side(n: object) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n > 0


def _steps(ask: Ask, start: int, step: int, words: str) -> str:
    possible = list(range(start + step, ask.count, step)) if step else []
    if ask.keep in possible:
        return ""
    return f"{words}: {nearest(possible, ask.keep)} of {ask.count} can stay, not {ask.keep}"
