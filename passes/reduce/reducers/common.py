"""What several reducers need: choosing the best, and carrying index, size and owner along."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.errors import UsageError
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import ReducerInput

#: TensorRT's TopK refuses a larger K (FACTS B.6).
TOPK_LIMIT = 3840


def choose(given: ReducerInput, count: int) -> gs.Tensor:
    """[B, count] i64: indices of the best patches, ascending.

    Raises:
        UsageError: no score, or more than TensorRT's TopK can give.
    """
    if given.score is None:
        raise UsageError("this reducer needs a score", where="schedule")
    if count < 1:
        raise UsageError("would leave no token of its own", where="--keep", hint="keep more")
    if count > TOPK_LIMIT:
        raise UsageError(
            f"keeping {count} tokens is beyond TensorRT's TopK limit of {TOPK_LIMIT}",
            where="--keep",
        )
    if given.fixed is not None:
        best = np.sort(np.argsort(-given.fixed, kind="stable")[:count])
        return for_all(given, best)
    return given.b.call("TcTopKTokens", given.score, dtypes=[np.int64], k=count)[0]


def for_all(given: ReducerInput, row: np.ndarray) -> gs.Tensor:
    """[B, n] i64: the same numbers for each image."""
    b = given.b
    if given.core.batch == 1:
        return b.const(row[None])
    nothing = b.op("Mul", b.cast(b.corner(given.x), np.int64), [0], dtype=np.int64)
    return b.op("Add", nothing, b.const(row[None]), dtype=np.int64)


def take(b: Builder, values: gs.Tensor | None, index: gs.Tensor) -> gs.Tensor:
    """values[b, index[b]] for [B, T] values; None stands for 0, 1, 2, …"""
    if values is None:
        return index
    return b.op("GatherElements", values, index, dtype=values.dtype, axis=1)


def compose_owner(b: Builder, before: gs.Tensor | None, step: gs.Tensor) -> gs.Tensor:
    """Owners of the original tokens, after one more step: step[before[n]]."""
    return step if before is None else b.op("GatherElements", step, before, dtype=np.int64, axis=1)
