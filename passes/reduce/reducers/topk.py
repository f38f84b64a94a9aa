"""R1: keep the best tokens in their order, drop the rest.

Haurum et al., Which Tokens to Use? (ICCVW 2023); by row: Jiang et al., FoPru (2024); by frame: Tao
et al., DyCoke (CVPR 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.reducers.base import Ask, Grid, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import compose_owner, staying, take
from tcompile.passes.reduce.reducers.quota import chosen, problem
from tcompile.passes.reduce.token_state import TokenState


def topk(given: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """x' = [prefix | x_S | suffix], S = the K best, by `quota.chosen`, ascending.

    For restored outputs a dropped token is represented by the kept one nearest in cosine here.
    """
    b = given.b
    if given.table is not None:
        return _in_groups(given, given.table)
    index = chosen(given)
    patches = given.of_patches(given.x, fp32=False)
    kept = b.call("TcGatherTokens", patches, index, dtypes=[given.x.dtype], fp32=False)[0]
    slots = b.const(np.arange(given.keep))
    step = b.call("TcNearestTokens", patches, index, slots, dtypes=[np.int64])[0]
    return given.joined(kept, fp32=False), staying(given, index, step)


def _in_groups(given: ReducerInput, table: np.ndarray) -> tuple[gs.Tensor, TokenState]:
    """The same for whole groups: score of a group = mean of its members'; the stream leaves as
    [group 0's members | group 1's | …], groups ascending.

    Args:
        table: [G, g], the patches of each group.
    """
    b, before = given.b, given.stage
    size = table.shape[1]
    if before.groups is not None:
        # They lie group by group since the first reduction.
        table = np.arange(before.count).reshape(-1, size)
    score, patches = given.score, given.of_patches(given.x, fp32=False)
    assert score is not None
    if not np.array_equal(table.reshape(-1), np.arange(table.size)):
        score = b.op("Gather", score, b.const(table.reshape(-1)), axis=1)
        lined = b.op("Gather", patches, b.const(table.reshape(-1)), dtype=given.x.dtype, axis=1)
    else:
        lined = patches
    groups = len(table)
    kept_groups = given.keep // size
    means = b.reduce("Mean", b.reshape(score, [0, groups, size]), [2])
    chosen = b.call("TcTopKTokens", means, dtypes=[np.int64], k=kept_groups)[0]
    index = b.reshape(
        b.op("Gather", b.const(table), chosen, dtype=np.int64, axis=0), [0, given.keep]
    )
    kept = b.call("TcGatherTokens", patches, index, dtypes=[given.x.dtype], fp32=False)[0]

    # A group that leaves belongs to the kept one whose mean is nearest.
    members = b.reshape(lined, [0, groups, size, given.width])
    slots = b.const(np.arange(kept_groups))
    nearest = b.call(
        "TcNearestTokens", b.reduce("Mean", members, [2]), chosen, slots, dtypes=[np.int64]
    )[0]
    group_owner = compose_owner(b, before.group_owner, nearest)
    after = TokenState(
        given.keep,
        index=take(b, before.index, index),
        owner=_owner(given, group_owner, size),
        local=index,
        groups=take(b, before.groups, chosen),
        group_owner=group_owner,
    )
    return given.joined(kept, fp32=False), after


def _owner(given: ReducerInput, group_owner: gs.Tensor, size: int) -> gs.Tensor:
    """[B, T]: the same member of the group that its own group belongs to."""
    assert given.table is not None
    b, place = given.b, np.argsort(given.table.reshape(-1))
    group = b.op("Gather", group_owner, b.const(place // size), dtype=np.int64, axis=1)
    return b.op(
        "Add", b.op("Mul", group, [size], dtype=np.int64), b.const(place % size), dtype=np.int64
    )


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
    problem=problem,
    grid=_grid,
    by=_by,
)
