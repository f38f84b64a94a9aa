"""R5: neighbouring columns, or rows, of the grid that are alike become one (ATME).

Wang et al., CAIT (2023); which lines are alike is by cosine here, without training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import Ask, Grid, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import (
    for_all,
    nearest,
    numbers,
    onehot,
    others,
    placed,
    planes,
    staying,
)
from tcompile.passes.reduce.token_state import TokenState

_AXES = {"rows": 1, "columns": 2}


@dataclass(frozen=True)
class _Lines:
    """Tokens [outer, count, inner] in raster order, `count` lines across, `left` afterwards."""

    outer: int
    count: int
    inner: int
    left: int

    @staticmethod
    def of(grid: Grid, keep: int, axis: str) -> _Lines:
        across = _axis_of(grid, keep, axis)
        inner, total = grid[2] if across == 1 else 1, grid[0] * grid[1] * grid[2]
        outer = total // (grid[across] * inner)
        return _Lines(outer, grid[across], inner, keep // (outer * inner))

    def apart(self, b: Builder, x: gs.Tensor, width: int) -> gs.Tensor:
        """[B, T, width] or [B, T] → [B, lines, members, width]."""
        parts = b.reshape(x, [-1, self.outer, self.count, self.inner, width])
        parts = b.transpose(parts, [0, 2, 1, 3, 4])
        return b.reshape(parts, [-1, self.count, self.outer * self.inner, width])

    def summed(self, b: Builder, into: gs.Tensor, x: gs.Tensor, width: int) -> gs.Tensor:
        """[B, K, width] in raster order: sums of [B, lines, members, width] over what is one."""
        flat = b.reshape(x, [-1, self.count, self.outer * self.inner * width])
        parts = b.reshape(
            b.op("MatMul", into, flat), [-1, self.left, self.outer, self.inner, width]
        )
        parts = b.transpose(parts, [0, 2, 1, 3, 4])
        return b.reshape(parts, [-1, self.outer * self.left * self.inner, width])

    def tokens(self, b: Builder, line: gs.Tensor, n: int, among: int) -> gs.Tensor:
        """[B, n] lines → [B, outer · n · inner] tokens of a grid of so many lines."""
        start = among * self.inner * np.arange(self.outer).reshape(1, -1, 1, 1)
        place = b.op("Mul", b.reshape(line, [-1, 1, n, 1]), [self.inner], dtype=np.int64)
        place = b.op("Add", place, b.const(start + np.arange(self.inner)), dtype=np.int64)
        return b.reshape(place, [-1, self.outer * n * self.inner])


def _possible_counts(grid: Grid, axis: str) -> dict[int, int]:
    """Counts that can stay → the axis: of both the longer, columns of equal ones."""
    found: dict[int, int] = {}
    both = [_AXES[axis]] if axis != "auto" else sorted((2, 1), key=lambda a: -grid[a])
    for across in both:
        each = grid[0] * grid[1] * grid[2] // grid[across]
        for r in range(1, grid[across] // 2 + 1):
            found.setdefault((grid[across] - r) * each, across)
    return found


def _axis_of(grid: Grid, keep: int, axis: str) -> int:
    return _possible_counts(grid, axis).get(keep, 0)


def lines(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """Join pairs of columns (or rows) (0, 1), (2, 3) … those r with the largest mean, over the
    rows, of cos(x_left, x_right) become one each, in the place of the left one: the mean by size,
    the sum of the sizes. r: columns that are too many for K. What is left is a grid in raster
    order; of a video all frames lose the same lines. Later attentions add log size only where they
    did before. fp32 inside.
    """
    b, before = inputs.builder, inputs.state
    now = _Lines.of(planes(inputs.grid, before.count), inputs.keep, inputs.parameters["axis"])
    pairs, r = now.count // 2, now.count - now.left
    x = now.apart(b, inputs.of_patches(inputs.x, fp32=False), inputs.width)
    seen = x
    if inputs.residual is not None:
        seen = now.apart(b, inputs.of_patches(inputs.residual, fp32=False), inputs.width)
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
        size = for_all(inputs, np.ones(before.count), np.float32)
    else:
        x = b.op("Mul", x, now.apart(b, size, 1))
    # [B, lines left, lines]: there are so few that a product is the shortest sum.
    into = onehot(b, step, now.left)
    total = now.summed(b, into, now.apart(b, size, 1), 1)
    merged = b.op("Div", now.summed(b, into, x, inputs.width), total)
    places = now.tokens(b, kept, now.left, now.count), now.tokens(b, step, now.count, now.left)
    return inputs.joined(merged, fp32=False), staying(inputs, *places, size=b.squeeze(total, 2))


def _problem(ask: Ask) -> str:
    grid, axis = planes(ask.grid, ask.count), ask.parameters["axis"]
    if not grid:
        return "lines need tokens that are a grid of rows and columns, which these are not"
    possible = _possible_counts(grid, axis)
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
    across = _axis_of(tuple(now), ask.keep, ask.parameters["axis"])
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
