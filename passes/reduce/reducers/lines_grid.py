"""The columns, or rows, of a grid of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import Grid

AXES = {"rows": 1, "columns": 2}


@dataclass(frozen=True)
class Lines:
    """Tokens [outer, count, inner] in raster order, `count` lines across, `left` afterwards."""

    outer: int
    count: int
    inner: int
    left: int

    @staticmethod
    def of(grid: Grid, keep: int, axis: str) -> Lines:
        across = axis_of(grid, keep, axis)
        inner, total = grid[2] if across == 1 else 1, grid[0] * grid[1] * grid[2]
        outer = total // (grid[across] * inner)
        return Lines(outer, grid[across], inner, keep // (outer * inner))

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


def possible_counts(grid: Grid, axis: str) -> dict[int, int]:
    """Counts that can stay → the axis: of both the longer, columns of equal ones."""
    found: dict[int, int] = {}
    both = [AXES[axis]] if axis != "auto" else sorted((2, 1), key=lambda a: -grid[a])
    for across in both:
        each = grid[0] * grid[1] * grid[2] // grid[across]
        for r in range(1, grid[across] // 2 + 1):
            found.setdefault((grid[across] - r) * each, across)
    return found


def axis_of(grid: Grid, keep: int, axis: str) -> int:
    return possible_counts(grid, axis).get(keep, 0)
