"""R5: one token for each cell of the grid, their mean (LLaVA-Zip).

Wang et al., LLaVA-Zip (2024); the side of a cell is fixed at compile time.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.reducers.base import Ask, Grid, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import for_all, nearest, planes, staying
from tcompile.passes.reduce.token_state import TokenState


def pool(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """y_c = Σ s x / Σ s over the cells of side × side, frame by frame, in raster order; those at
    the right and bottom edge may be smaller. A cell has the position of its top left token and
    the sum of the sizes; later attentions add its logarithm where they did before. fp32 inside.
    """
    b, before, side = inputs.builder, inputs.state, inputs.parameters["side"]
    grid = planes(inputs.grid, before.count)
    cell, first = _cells(grid, side)
    patches = inputs.of_patches(inputs.x, fp32=False)
    members = b.const(np.bincount(cell)[None], np.float32)
    size = before.size
    if size is None:
        pooled = _means(inputs, patches, grid, inputs.width)
        total = for_all(inputs, np.bincount(cell), np.float32)
    else:
        column = b.unsqueeze(size, 2)
        means = _means(inputs, column, grid, 1)
        pooled = b.op(
            "Div", _means(inputs, b.op("Mul", patches, column), grid, inputs.width), means
        )
        total = b.op("Mul", b.squeeze(means, 2), members)
    after = staying(inputs, for_all(inputs, first), for_all(inputs, cell), size=total)
    return inputs.joined(pooled, fp32=False), after


def _means(inputs: ReducerInput, x: gs.Tensor, grid: Grid, width: int) -> gs.Tensor:
    """[B, K, width]: plain means over the cells."""
    b, side, (_, h, w) = inputs.builder, inputs.parameters["side"], grid
    images = b.transpose(b.reshape(x, [-1, h, w, width]), [0, 3, 1, 2])
    # What is padded does not count.
    pooled = b.op(
        "AveragePool",
        images,
        kernel_shape=[side, side],
        strides=[side, side],
        pads=[0, 0, -h % side, -w % side],
        count_include_pad=0,
    )
    return b.reshape(b.transpose(pooled, [0, 2, 3, 1]), [-1, inputs.keep, width])


def _cells(grid: Grid, side: int) -> tuple[np.ndarray, np.ndarray]:
    """[T] and [K]: the cell of each token, and the first token of each cell."""
    frame, row, column = np.indices(grid)
    _, h, w = _smaller(grid, side)
    cell = ((frame * h + row // side) * w + column // side).reshape(-1)
    return cell, np.unique(cell, return_index=True)[1]


def _smaller(grid: Grid, side: int) -> Grid:
    return (*grid[:-2], -(-grid[-2] // side), -(-grid[-1] // side))


def _problem(ask: Ask) -> str:
    grid, side = planes(ask.grid, ask.count), ask.parameters["side"]
    if not grid:
        return "pooling needs tokens that are a grid of rows and columns, which these are not"
    if side > max(grid[1:]):
        return f"a cell of side {side} is larger than the grid of {grid[1]} x {grid[2]}"
    if ask.keep != prod(_smaller(grid, side)):
        choices = {prod(_smaller(grid, s)): s for s in range(max(grid[1:]), 1, -1)}
        return (
            f"cells of side {side} leave {prod(_smaller(grid, side))} tokens, not {ask.keep}; "
            f"sides of 2 or more can leave {nearest(sorted(choices), ask.keep)}"
        )
    return ""


def _grid(ask: Ask) -> Grid:
    return _smaller(ask.grid, ask.parameters["side"])


REDUCER = Reducer(
    "pool",
    pool,
    {"side": Parameter(int, 2, "rows and columns of a cell", least=2)},
    traits=frozenset({"merge"}),
    scored=False,
    problem=_problem,
    grid=_grid,
)
