"""R5: windows of tokens that are alike become one token (ALGM's local step).

Norouzi et al., ALGM (CVPR 2024); a fixed number of windows in place of a threshold.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import (
    cells,
    for_all,
    metric,
    nearest,
    numbers,
    others,
    placed,
    planes,
    rows,
    sorts,
    staying,
    take,
)
from tcompile.passes.reduce.token_state import TokenState


def windows(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """x' = [prefix | merged windows | all others | suffix], each ascending; fp32 inside.

    Of the whole side × side windows the r = (T − K)/(side² − 1) with the largest mean cosine of two
    different members become their last member: the mean by size, the sum of the sizes. Later
    attentions add its logarithm only where they did before (released code does not).
    """
    b, before, parameters = inputs.builder, inputs.state, inputs.parameters
    side, count = parameters["side"], before.count
    table = cells(planes(inputs.grid, count), side, side)
    merges = (count - inputs.keep) // (side * side - 1)
    chosen = b.call("TcTopKTokens", _alike(inputs, table), dtypes=[np.int64], k=merges)[0]
    members = b.op("Gather", b.const(table), chosen, dtype=np.int64, axis=0)
    taken = b.reshape(members, [0, merges * side * side])
    last = b.squeeze(b.slice(members, 2, side * side - 1, None), 2)
    patches = inputs.of_patches(inputs.x, fp32=False)
    size = before.size
    if size is None:
        size = for_all(inputs, np.ones(count), np.float32)
    merged, total = _means(inputs, patches, size, table, chosen)

    slot = b.op(
        "Add",
        b.op("Mul", members, [0], dtype=np.int64),
        b.const(np.arange(merges).reshape(1, -1, 1)),
        dtype=np.int64,
    )
    into = (taken, b.reshape(slot, [0, merges * side * side]))
    left = inputs.keep - merges
    if not left:
        state = staying(inputs, last, placed(b, count, into), **_sizes(inputs, total))
        return inputs.joined(merged, fp32=False), state
    rest = others(b, taken, count, left)
    after = b.op("Add", numbers(b, rest, left), [merges], dtype=np.int64)
    step = placed(b, count, into, (rest, after))
    joined = b.concat([merged, rows(b, patches, rest, fp32=False)], 1, fp32=False)
    total = b.concat([total, take(b, size, rest)], 1)
    index = b.concat([last, rest], 1)
    state = staying(inputs, index, step, **_sizes(inputs, total))
    return inputs.joined(joined, fp32=False), state


def _sizes(inputs: ReducerInput, total: gs.Tensor) -> dict[str, gs.Tensor]:
    return {"size": total} if inputs.parameters["sizes"] else {}


def _alike(inputs: ReducerInput, table: np.ndarray) -> gs.Tensor:
    """[B, windows]: Σ_{i≠j} cos(x_i, x_j)/(m(m − 1)), by |Σ u|² − Σ |u|² of the directions u."""
    b = inputs.builder
    each = b.unit(_lined(inputs, metric(inputs), table))
    whole = b.reduce("Sum", each, [2])
    both = b.reduce("Sum", b.op("Mul", whole, whole), [2])
    own = b.reduce("Sum", b.op("Mul", each, each), [2, 3])
    pairs = table.shape[1] * (table.shape[1] - 1)
    return b.op("Div", b.op("Sub", both, own), b.const([pairs], np.float32))


def _means(
    inputs: ReducerInput, x: gs.Tensor, size: gs.Tensor, table: np.ndarray, chosen: gs.Tensor
) -> tuple[gs.Tensor, gs.Tensor]:
    """[B, r, C] and [B, r]: means and sizes of the chosen windows."""
    b = inputs.builder
    weight = _lined(inputs, b.unsqueeze(size, 2), table)
    total = b.reduce("Sum", weight, [2])
    means = b.op("Div", b.reduce("Sum", b.op("Mul", _lined(inputs, x, table), weight), [2]), total)
    return rows(b, means, chosen), take(b, b.squeeze(total, 2), chosen)


def _lined(inputs: ReducerInput, x: gs.Tensor, table: np.ndarray) -> gs.Tensor:
    """[B, windows, members, D]: the tokens of each window."""
    lined = inputs.builder.op(
        "Gather", x, inputs.builder.const(table.reshape(-1)), dtype=x.dtype, axis=1
    )
    return inputs.builder.reshape(lined, [0, *table.shape, -1])


def _problem(ask: Ask) -> str:
    side, grid = ask.parameters["side"], planes(ask.grid, ask.count)
    if not grid:
        return "windows need tokens that are a grid of rows and columns, which these are not"
    each, most = side * side - 1, len(cells(grid, side, side))
    possible = [ask.count - each * r for r in range(most, 0, -1)]
    if ask.keep not in possible:
        return (
            f"up to {most} windows of {side} x {side} can merge, {each} tokens leaving with "
            f"each: {nearest(possible, ask.keep)} of {ask.count} tokens can stay, not "
            f"{ask.keep}"
        )
    return sorts(ask.keep)


REDUCER = Reducer(
    "windows",
    windows,
    {
        "side": Parameter(int, 2, "rows and columns of a window", least=2),
        "metric": Parameter(str, "x", "what cosines are taken of", ("keys", "x")),
        "sizes": Parameter(bool, True, "tokens count for as many as they stand for from here on"),
    },
    traits=frozenset({"merge"}),
    scored=False,
    problem=_problem,
)
