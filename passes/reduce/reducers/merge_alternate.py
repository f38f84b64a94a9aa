"""ToMe's own case of `merge`, by token ops on strided slices: no gather before the match."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import ReducerInput


def alternate(
    given: ReducerInput, metric: gs.Tensor
) -> tuple[gs.Tensor, gs.Tensor, gs.Tensor, gs.Tensor]:
    """Even positions match odd ones; the r best pairs become their size-weighted mean.

    x_b' = (s_b x_b + Σ s_a x_a)/(s_b + Σ s_a), fp32 inside; order [unmerged even | odd].

    Args:
        metric: [B, T, D], what cosines are taken of.

    Returns:
        The patches [B, K, C] and their sizes [B, K]; where each was before [B, K], and where each
        token of before went [B, T].
    """
    b, count = given.b, given.stage.count
    r = count - given.keep
    half, odd = count - count // 2, count // 2
    patches = given.of_patches(given.x, fp32=False)
    size = given.stage.size
    if size is None:
        first = b.reduce("Sum", b.op("Sub", metric, metric), [2])
        size = b.op("Add", first, b.const([[1]], np.float32))
    slots, rest = b.const(np.arange(odd)), half - r
    dtypes = [np.float32, np.float32]
    if rest:
        keep, source, target = b.call(
            "TcMatchTokens", metric, dtypes=[np.int64] * 3, r=r, half=half, rest=rest
        )
        merged, sizes = b.call(
            "TcMergeTokens", patches, size, keep, source, target, slots, dtypes=dtypes
        )
        index = b.concat([b.op("Mul", keep, [2], dtype=np.int64), _odd(b, keep, odd)], 1)
    else:
        keep = source = None
        target = b.call("TcMatchAllTokens", metric, dtypes=[np.int64])[0]
        merged, sizes = b.call("TcMergeAllTokens", patches, size, target, slots, dtypes=dtypes)
        index = _odd(b, target, odd)
    return merged, sizes, index, _owner(b, count, rest, keep, source, target)


def _odd(b: Builder, like: gs.Tensor, odd: int) -> gs.Tensor:
    """[B, odd]: 1, 3, 5, … for each sample."""
    first = b.slice(like, 1, 0, 1)
    zero = b.op("Sub", first, first, dtype=np.int64)
    return b.op("Add", zero, b.const(2 * np.arange(odd)[None] + 1), dtype=np.int64)


def _owner(
    b: Builder,
    count: int,
    rest: int,
    keep: gs.Tensor | None,
    source: gs.Tensor | None,
    target: gs.Tensor,
) -> gs.Tensor:
    """[B, T]: where each token of before went: [unmerged even | odd], interleaved back."""
    half, odd = count - count // 2, count // 2
    moved = b.op("Add", target, [rest], dtype=np.int64)
    first = b.slice(target, 1, 0, 1)
    zero = b.op("Sub", first, first, dtype=np.int64)
    if keep is None or source is None:
        even = moved
    else:
        base = b.op("Add", zero, b.const(np.zeros((1, half))), dtype=np.int64)
        nothing = b.op("Sub", keep, keep, dtype=np.int64)
        ranks = b.op("Add", nothing, b.const(np.arange(rest)), dtype=np.int64)
        even = b.op("ScatterElements", base, keep, ranks, dtype=np.int64, axis=1)
        even = b.op("ScatterElements", even, source, moved, dtype=np.int64, axis=1)
    odds = b.op("Add", zero, b.const(rest + np.arange(half)[None]), dtype=np.int64)
    pairs = b.concat([b.unsqueeze(even, 2), b.unsqueeze(odds, 2)], 2)
    flat = b.reshape(pairs, [0, 2 * half])
    return flat if odd == half else b.slice(flat, 1, 0, count)
