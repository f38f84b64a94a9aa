"""R1: keep the best tokens in their order, drop the rest.

Haurum et al., Which Tokens to Use? (ICCVW 2023); by row: Jiang et al., FoPru (2024); by frame: Tao
et al., DyCoke (CVPR 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.reducers.base import Ask, Grid, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import (
    ascending,
    cells,
    choose,
    compose_owner,
    for_all,
    nearest,
    planes,
    scored,
    sorts,
    staying,
    take,
)
from tcompile.passes.reduce.token_state import TokenState

#: DyCoke: frames in a group, the first of which stays whole.
_FRAMES = 4


def topk(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """x' = [prefix | x_S | suffix], S = the K best, by `_chosen`, ascending.

    For restored outputs a dropped token is represented by the kept one nearest in cosine here.
    """
    b = inputs.builder
    if inputs.group_table is not None:
        return _in_groups(inputs, inputs.group_table)
    index = _chosen(inputs)
    patches = inputs.of_patches(inputs.x, fp32=False)
    kept = b.call("TcGatherTokens", patches, index, dtypes=[inputs.x.dtype], fp32=False)[0]
    slots = b.const(np.arange(inputs.keep))
    step = b.call("TcNearestTokens", patches, index, slots, dtypes=[np.int64])[0]
    return inputs.joined(kept, fp32=False), staying(inputs, index, step)


def _in_groups(inputs: ReducerInput, table: np.ndarray) -> tuple[gs.Tensor, TokenState]:
    """The same for whole groups: score of a group = mean of its members'; the stream leaves as
    [group 0's members | group 1's | …], groups ascending.

    Args:
        table: [G, g], the patches of each group.
    """
    b, before = inputs.builder, inputs.state
    size = table.shape[1]
    if before.groups is not None:
        # They lie group by group since the first reduction.
        table = np.arange(before.count).reshape(-1, size)
    score, patches = inputs.score, inputs.of_patches(inputs.x, fp32=False)
    assert score is not None
    if not np.array_equal(table.reshape(-1), np.arange(table.size)):
        score = b.op("Gather", score, b.const(table.reshape(-1)), axis=1)
        lined = b.op("Gather", patches, b.const(table.reshape(-1)), dtype=inputs.x.dtype, axis=1)
    else:
        lined = patches
    groups = len(table)
    kept_groups = inputs.keep // size
    means = b.reduce("Mean", b.reshape(score, [0, groups, size]), [2])
    chosen = b.call("TcTopKTokens", means, dtypes=[np.int64], k=kept_groups)[0]
    index = b.reshape(
        b.op("Gather", b.const(table), chosen, dtype=np.int64, axis=0), [0, inputs.keep]
    )
    kept = b.call("TcGatherTokens", patches, index, dtypes=[inputs.x.dtype], fp32=False)[0]

    # A group that leaves belongs to the kept one whose mean is nearest.
    members = b.reshape(lined, [0, groups, size, inputs.width])
    slots = b.const(np.arange(kept_groups))
    nearest = b.call(
        "TcNearestTokens", b.reduce("Mean", members, [2]), chosen, slots, dtypes=[np.int64]
    )[0]
    group_owner = compose_owner(b, before.group_owner, nearest)
    after = TokenState(
        inputs.keep,
        index=take(b, before.index, index),
        owner=_owner(inputs, group_owner, size),
        local=index,
        groups=take(b, before.groups, chosen),
        group_owner=group_owner,
    )
    return inputs.joined(kept, fp32=False), after


def _owner(inputs: ReducerInput, group_owner: gs.Tensor, size: int) -> gs.Tensor:
    """[B, T]: the same member of the group that its own group belongs to."""
    assert inputs.group_table is not None
    b, place = inputs.builder, np.argsort(inputs.group_table.reshape(-1))
    group = b.op("Gather", group_owner, b.const(place // size), dtype=np.int64, axis=1)
    return b.op(
        "Add", b.op("Mul", group, [size], dtype=np.int64), b.const(place % size), dtype=np.int64
    )


def _chosen(inputs: ReducerInput) -> gs.Tensor:
    """[B, K] i64, ascending: the K best;

    * unit=row: the K/w rows of the grid with the largest sums, whole (FoPru);
    * within=[h, w]: as many of each h × w window of the grid (R8);
    * within=frames: the first of every four frames whole, as many of each other frame (DyCoke).
    """
    parameters, grid = inputs.parameters, planes(inputs.grid, inputs.state.count)
    within = parameters["within"]
    if parameters["unit"] == "row":
        return _rows(inputs, grid)
    if within is None:
        return choose(inputs, inputs.keep)
    if within == "frames":
        whole, others = _frames(grid)
        first = for_all(inputs, whole.reshape(-1))
        best = _each(inputs, others, inputs.keep - whole.size)
        index = inputs.builder.concat([first, best], 1)
    else:
        index = _each(inputs, cells(grid, *within), inputs.keep)
    return ascending(inputs.builder, index, inputs.keep)[0]


def _rows(inputs: ReducerInput, grid: Grid) -> gs.Tensor:
    b, wide = inputs.builder, grid[2]
    each = b.reshape(scored(inputs), [0, grid[0] * grid[1], wide])
    best = b.call(
        "TcTopKTokens", b.reduce("Sum", each, [2]), dtypes=[np.int64], k=inputs.keep // wide
    )[0]
    first = b.unsqueeze(b.op("Mul", best, [wide], dtype=np.int64), 2)
    index = b.op("Add", first, b.const(np.arange(wide).reshape(1, 1, -1)), dtype=np.int64)
    return b.reshape(index, [0, inputs.keep])


def _each(inputs: ReducerInput, table: np.ndarray, count: int) -> gs.Tensor:
    """[B, count] i64: the best of each row of the table [n, m], count/n of them."""
    b, (n, m) = inputs.builder, table.shape
    lined = b.op("Gather", scored(inputs), b.const(table.reshape(-1)), axis=1)
    _, best = b.top_k(b.reshape(lined, [0, n, m]), count // n)
    place = b.op("Add", best, b.const(m * np.arange(n).reshape(1, -1, 1)), dtype=np.int64)
    index = b.op("Gather", b.const(table.reshape(-1)), place, dtype=np.int64, axis=0)
    return b.reshape(index, [0, count])


def _frames(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """[whole frames, S] and [other frames, S]: their tokens."""
    places = np.arange(prod(grid)).reshape(grid[0], -1)
    return places[::_FRAMES], places[np.arange(grid[0]) % _FRAMES > 0]


def _problem(ask: Ask) -> str:
    """Return why as many cannot be kept so; empty if they can."""
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


def _grid(ask: Ask) -> Grid:
    if ask.parameters["unit"] != "row" or len(ask.grid) != 2:
        return ()
    return (ask.keep // ask.grid[1], ask.grid[1])


def _by(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Groups and segments have a quota of their own."""
    plain = parameters["unit"] == "token" and parameters["within"] is None
    return {"groups": plain, "segments": plain}


REDUCER = Reducer(
    "topk",
    topk,
    {
        "unit": Parameter(str, "token", "what leaves", ("token", "row")),
        "within": Parameter(
            object,
            None,
            "[rows, columns] of windows that all keep as many; or "
            "frames: three of every four do, the first stays whole",
        ),
    },
    groups=True,
    segments=True,
    problem=_problem,
    grid=_grid,
    by=_by,
)
