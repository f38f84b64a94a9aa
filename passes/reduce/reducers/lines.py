"""R5: neighbouring columns, or rows, of the grid that are alike become one (ATME).

Wang et al., CAIT (2023); which lines are alike is by cosine here, without training.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.reducers.base import Ask, Grid, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import for_all, numbers, onehot, others, placed, staying
from tcompile.passes.reduce.reducers.grids import nearest, planes
from tcompile.passes.reduce.reducers.lines_grid import Lines, axis_of, possible_counts
from tcompile.passes.reduce.token_state import TokenState


def lines(given: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """Of the pairs of columns (or rows) (0, 1), (2, 3) … those r with the largest mean, over the
    rows, of cos(x_left, x_right) become one each, in the place of the left one: the mean by size,
    the sum of the sizes. r: columns that are too many for K. What is left is a grid in raster
    order; of a video all frames lose the same lines. Later attentions add log size only where they
    did before. fp32 inside.
    """
    b, before = given.b, given.stage
    now = Lines.of(planes(given.grid, before.count), given.keep, given.parameters["axis"])
    pairs, r = now.count // 2, now.count - now.left
    x = now.apart(b, given.of_patches(given.x, fp32=False), given.width)
    seen = x
    if given.beside is not None:
        seen = now.apart(b, given.of_patches(given.beside, fp32=False), given.width)
    each = b.unit(seen)
    left, right = (
        b.op("Slice", each, [i], [2 * pairs], [1], [2], dtype=each.dtype) for i in (0, 1)
    )
    alike = b.reduce("Mean", b.reduce("Sum", b.op("Mul", left, right), [3]), [2])
    chosen = b.call("TcTopKTokens", alike, dtypes=[np.int64], k=r)[0]

    first = b.op("Mul", chosen, [2], dtype=np.int64)
    second = b.op("Add", first, [1], dtype=np.int64)
    kept = others(b, second, now.count, now.left)
    step = placed(b, now.count, (kept, numbers(b, kept, now.left)))
    slot = b.op("GatherElements", step, first, dtype=np.int64, axis=1)
    step = b.op("ScatterElements", step, second, slot, dtype=np.int64, axis=1)

    size = before.size
    if size is None:
        size = for_all(given, np.ones(before.count), np.float32)
    else:
        x = b.op("Mul", x, now.apart(b, size, 1))
    # [B, lines left, lines]: there are so few that a product is the shortest sum.
    into = onehot(b, step, now.left)
    total = now.summed(b, into, now.apart(b, size, 1), 1)
    merged = b.op("Div", now.summed(b, into, x, given.width), total)
    places = now.tokens(b, kept, now.left, now.count), now.tokens(b, step, now.count, now.left)
    return given.joined(merged, fp32=False), staying(given, *places, size=b.squeeze(total, 2))


def _problem(ask: Ask) -> str:
    grid, axis = planes(ask.grid, ask.count), ask.parameters["axis"]
    if not grid:
        return "lines need tokens that are a grid of rows and columns, which these are not"
    possible = possible_counts(grid, axis)
    if ask.keep in possible:
        return ""
    what = "whole rows or columns" if axis == "auto" else f"whole {axis}"
    return (
        f"{what} of a grid of {grid[1]} x {grid[2]} merge, up to half of them: "
        f"{nearest(sorted(possible), ask.keep)} of {ask.count} can stay, not "
        f"{ask.keep}"
    )


def _grid(ask: Ask) -> Grid:
    now = list(planes(ask.grid, ask.count))
    across = axis_of(tuple(now), ask.keep, ask.parameters["axis"])
    now[across] = ask.keep * now[across] // ask.count
    return tuple(now[3 - len(ask.grid) :])


REDUCER = Reducer(
    "lines",
    lines,
    {
        "axis": Parameter(
            str,
            "auto",
            "which lines merge; auto: those of the longer side that can, columns of a square",
            ("auto", "columns", "rows"),
        )
    },
    traits=frozenset({"merge"}),
    scored=False,
    problem=_problem,
    grid=_grid,
)
