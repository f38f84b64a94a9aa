"""ToMe's merge: even positions into odd ones, size-weighted, in the order [unmerged even | odd]."""

from __future__ import annotations

import numpy as np

from tcompile.plugins.ops.common import HALVES, take
from tcompile.plugins.spec import Array, TokenOp


def added(base: Array, slot: Array, values: Array) -> Array:
    """base [B, K, …] in fp64 with values [B, r, …] added at slot [B, r]: no product with zeros, so
    that what is not finite stays in its group."""
    total = base.astype(np.float64)
    for b, (row, value) in enumerate(zip(slot, values, strict=True)):
        np.add.at(total[b], row, value)
    return total


def _merge(
    x: Array, size: Array, keep: Array, source: Array, target: Array, slots: Array
) -> tuple[Array, ...]:
    even, odd = x[:, 0::2], x[:, 1::2]
    even_size, odd_size = size[:, 0::2], size[:, 1::2]
    weight = take(even_size, source)
    with np.errstate(all="ignore"):
        total = added(odd_size, target, weight)
        summed = added(odd * odd_size[..., None], target, take(even, source) * weight[..., None])
        merged = summed / total[..., None]
    return (
        np.concatenate([take(even, keep), merged], 1).astype(np.float32),
        np.concatenate([take(even_size, keep), total], 1).astype(np.float32),
    )


def _merge_all(x: Array, size: Array, target: Array, slots: Array) -> tuple[Array, ...]:
    source = np.broadcast_to(np.arange(target.shape[1]), target.shape)
    return _merge(x, size, source[:, :0], source, target, slots)


_MERGED = """  hot = Equal (target_column, slots)
  hot_f = Cast <to: int = 1> (hot)
  onehot = Transpose <perm: ints = [0, 2, 1]> (hot_f)
  weighted = Mul ({0}, {1})
  arriving = MatMul (onehot, weighted)
  arriving_size = MatMul (onehot, {1})
  own = Mul (odd, odd_size)
  total = Add (odd_size, arriving_size)
  sum = Add (own, arriving)
  merged = Div (sum, total)"""

_SPLIT = (
    HALVES
    + """
  last = Constant <value: tensor = int64[1] {-1}> ()
  size_column = Unsqueeze (size, last)
  even = Slice (x, zero, end, one, two)
  odd = Slice (x, one, end, one, two)
  even_size = Slice (size_column, zero, end, one, two)
  odd_size = Slice (size_column, one, end, one, two)
  target_column = Unsqueeze (target, last)
"""
)

_WEIGHTED = """x_b' = (s_b x_b + sum of s_a x_a)/(s_b + sum of s_a) over the even positions a that
merge into the odd position b, s the sizes, in fp32; sizes add up."""

MERGE = TokenOp(
    "TcMergeTokens",
    (
        "x [B,T,C] data: tokens",
        "size [B,T] f32: how many each stands for, above 0",
        "keep [B,rest] index: even positions that stay",
        "source [B,r] index: even ones that merge",
        "target [B,r] index: whom into, among the odd ones",
        "slots [T/2] index: 0 to T/2-1",
    ),
    (
        "y [B,rest+T/2,C] data: [unmerged even | odd]",
        "new_size [B,rest+T/2] f32: how many each stands for",
    ),
    (),
    _SPLIT
    + """  keep_column = Unsqueeze (keep, last)
  source_column = Unsqueeze (source, last)
  kept = GatherND <batch_dims: int = 1> (even, keep_column)
  kept_size = GatherND <batch_dims: int = 1> (even_size, keep_column)
  leaving = GatherND <batch_dims: int = 1> (even, source_column)
  leaving_size = GatherND <batch_dims: int = 1> (even_size, source_column)
"""
    + _MERGED.format("leaving", "leaving_size")
    + """
  y = Concat <axis: int = 1> (kept, merged)
  sizes = Concat <axis: int = 1> (kept_size, total)
  new_size = Squeeze (sizes, last)""",
    _merge,
    doc=_WEIGHTED
    + """ Numbers are those of `TcMatchTokens`. `merge` with split=alternate uses it.
The body multiplies by zeros: where x is not finite it spoils more than the group it is in.""",
    limits=("rest+r==T-T/2", "2<=T", "T<=16384"),
    unused=("slots",),
)

MERGE_ALL = TokenOp(
    "TcMergeAllTokens",
    (
        "x [B,T,C] data: tokens",
        "size [B,T] f32: how many each stands for, above 0",
        "target [B,T-T/2] index: whom each even position merges into, among the odd ones",
        "slots [T/2] index: 0 to T/2-1",
    ),
    ("merged [B,T/2,C] data: the odd positions", "new_size [B,T/2] f32: how many each stands for"),
    (),
    _SPLIT + _MERGED.format("even", "even_size") + "\n  new_size = Squeeze (total, last)",
    _merge_all,
    doc=_WEIGHTED + """ Here every even position merges, by `TcMatchAllTokens`.""",
    limits=("2<=T", "T<=16384"),
    unused=("slots",),
)
