"""Parts of several reducers: choosing the best, carrying index, size and owner along, grids."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import Grid, ReducerInput
from tcompile.passes.reduce.token_state import TokenState

#: TensorRT's TopK refuses a larger K.
TOPK_LIMIT = 3840

#: A score or a size counts as no less than this.
TINY = 1e-12


def choose(inputs: ReducerInput, count: int) -> gs.Tensor:
    """[B, count] i64: indices of the best patches, ascending.

    Raises:
        UsageError: no score, or more than TensorRT's TopK can give.
    """
    score = scored(inputs)
    if count < 1:
        raise UsageError("would leave no token of its own", where="--keep", hint="keep more")
    if count > TOPK_LIMIT:
        raise UsageError(
            f"keeping {count} tokens is beyond TensorRT's TopK limit of {TOPK_LIMIT}",
            where="--keep",
        )
    if inputs.fixed_score is not None:
        best = np.sort(np.argsort(-inputs.fixed_score, kind="stable")[:count])
        return for_all(inputs, best)
    return inputs.builder.call("TcTopKTokens", score, dtypes=[np.int64], k=count)[0]


def scored(inputs: ReducerInput) -> gs.Tensor:
    """[B, T], the score.

    Raises:
        UsageError: there is none.
    """
    if inputs.score is None:
        raise UsageError("this reducer needs a score", where="schedule")
    return inputs.score


def metric(inputs: ReducerInput) -> gs.Tensor:
    """[B, T, D]: keys averaged over heads, or the stream."""
    if inputs.parameters["metric"] == "keys":
        return inputs.of_patches(inputs.attention.keys())
    return inputs.of_patches(inputs.stream, fp32=False)


def sorts(*lengths: int) -> str:
    """Return why a reducer that sorts so many tokens cannot; empty if it can."""
    if max(lengths) > TOPK_LIMIT:
        return f"would sort {max(lengths)} tokens, beyond TensorRT's TopK limit of {TOPK_LIMIT}"
    return ""


def for_all(inputs: ReducerInput, row: np.ndarray, dtype: Any = np.int64) -> gs.Tensor:
    """[B, n]: the same numbers for each image."""
    b = inputs.builder
    if inputs.attention.batch == 1:
        return b.const(row[None], dtype)
    return b.for_all(row, inputs.x, dtype)


def numbers(b: Builder, like: gs.Tensor, count: int) -> gs.Tensor:
    """[B, count] i64: 0, 1, 2, … for each image of `like` [B, n] i64."""
    zero = b.op("Mul", b.slice(like, 1, 0, 1), [0], dtype=np.int64)
    return b.op("Add", zero, b.const(np.arange(count)[None]), dtype=np.int64)


def others(b: Builder, index: gs.Tensor, total: int, count: int) -> gs.Tensor:
    """[B, count] i64: those of 0 … total − 1 that are not in index [B, total − count], ascending;
    no two keys are equal, so that no tie can take one twice."""
    far = b.op("Add", index, [total], dtype=np.int64)
    key = b.op("ScatterElements", numbers(b, index, total), index, far, dtype=np.int64, axis=1)
    return ascending(b, key, count)[1]


def ascending(b: Builder, key: gs.Tensor, count: int) -> list[gs.Variable]:
    """[B, count] i64 twice: the least of key [B, n] i64, ascending, and where they are."""
    least, place = b.top_k(b.cast(key, np.float32), count, largest=False)
    return [b.cast(least, np.int64), place]


def placed(b: Builder, total: int, *pairs: tuple[gs.Tensor, gs.Tensor]) -> gs.Tensor:
    """[B, total] i64: of each pair (index, slot), [B, n] both, the slots where the index says."""
    found: gs.Tensor = numbers(b, pairs[0][0], total)
    for index, slot in pairs:
        found = b.op("ScatterElements", found, index, slot, dtype=np.int64, axis=1)
    return found


def onehot(b: Builder, slot: gs.Tensor, count: int) -> gs.Tensor:
    """[B, count, n] f32 of slot [B, n]: 1 where a token is in a slot."""
    slots = b.const(np.arange(count).reshape(1, -1, 1))
    return b.cast(b.op("Equal", b.unsqueeze(slot, 1), slots, dtype=np.bool_), np.float32)


def rows(b: Builder, x: gs.Tensor, index: gs.Tensor, *, fp32: bool = True) -> gs.Tensor:
    """[B, K, C]: those of x [B, T, C] at index [B, K]."""
    return b.call("TcGatherTokens", x, index, dtypes=[x.dtype], fp32=fp32)[0]


def take(b: Builder, values: gs.Tensor | None, index: gs.Tensor) -> gs.Tensor:
    """values[b, index[b]] for [B, T] values; None stands for 0, 1, 2, …"""
    if values is None:
        return index
    return b.op("GatherElements", values, index, dtype=values.dtype, axis=1)


def compose_owner(b: Builder, before: gs.Tensor | None, step: gs.Tensor) -> gs.Tensor:
    """Owners of the original tokens, after one more step: step[before[n]]."""
    return step if before is None else b.op("GatherElements", step, before, dtype=np.int64, axis=1)


def staying(inputs: ReducerInput, index: gs.Tensor, step: gs.Tensor, **changes: Any) -> TokenState:
    """The state of tokens that were at index [B, K] before.

    Args:
        step: [B, T], which of them now stands for each of before.
        changes: what does not just go with its token, such as `size`.
    """
    b, before = inputs.builder, inputs.state
    known = {
        "size": None if before.size is None else take(b, before.size, index),
        "prop_attn": before.prop_attn,
        **changes,
    }
    return TokenState(
        inputs.keep,
        index=take(b, before.index, index),
        owner=compose_owner(b, before.owner, step),
        positioned=before.positioned,
        local=index,
        **known,
    )


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
