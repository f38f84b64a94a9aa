"""The token ops. Shapes: B batch, T tokens in, K tokens out, C channels, r pairs merged.

Only ops that every TensorRT accepts: no scatter-add, no NonZero, no computed shapes. Where a tie is
possible the lower index wins, as in ONNX TopK.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tcompile.plugins.spec import TokenOp

_Array = np.ndarray[Any, Any]


def _top(scores: _Array, k: int) -> _Array:
    """Indices of the k largest along the last axis, best first, ties to the lower index."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def _take(x: _Array, index: _Array) -> _Array:
    return np.take_along_axis(x, index if x.ndim == 2 else index[..., None], axis=1)


def _unit(x: _Array) -> _Array:
    squares = np.maximum((x * x).sum(-1, keepdims=True), 1e-12)
    return np.asarray(x / np.sqrt(squares))


_UNIT = """  last = Constant <value: tensor = int64[1] {{-1}}> ()
  tiny = Constant <value_float: float = 1e-12> ()
  squares = Mul ({0}, {0})
  summed = ReduceSum <keepdims: int = 1> (squares, last)
  safe = Max (summed, tiny)
  length = Sqrt (safe)
  unit = Div ({0}, length)"""

_SORT = """  as_float = Cast <to: int = 1> ({0})
  ascending, unused = TopK <axis: int = -1, largest: int = 0, sorted: int = 1> (as_float, {1})
  {2} = Cast <to: int = 7> (ascending)"""

_HALVES = """  zero = Constant <value: tensor = int64[1] {0}> ()
  one = Constant <value: tensor = int64[1] {1}> ()
  two = Constant <value: tensor = int64[1] {2}> ()
  end = Constant <value: tensor = int64[1] {9223372036854775807}> ()"""


def _top_k_tokens(scores: _Array, k: int) -> tuple[_Array, ...]:
    return (np.sort(_top(scores, k), axis=-1),)


TOP_K = TokenOp(
    "TcTopKTokens",
    ("scores [B,T] f32",),
    ("index [B,K] i64",),
    ("k: how many tokens to keep",),
    """  count = Constant <value: tensor = @k> ()
  best, chosen = TopK <axis: int = -1, largest: int = 1, sorted: int = 1> (scores, count)
"""
    + _SORT.format("chosen", "count", "index"),
    _top_k_tokens,
)

GATHER = TokenOp(
    "TcGatherTokens",
    ("x [B,T,C]", "index [B,K] i64"),
    ("y [B,K,C]",),
    (),
    """  last = Constant <value: tensor = int64[1] {-1}> ()
  column = Unsqueeze (index, last)
  y = GatherND <batch_dims: int = 1> (x, column)""",
    lambda x, index: (_take(x, index),),
)


def _fuse(x: _Array, weight: _Array, index: _Array) -> tuple[_Array, ...]:
    left = weight.copy()
    np.put_along_axis(left, index, 0, axis=1)
    return (left[:, None] @ x,)


FUSE = TokenOp(
    "TcFuseTokens",
    ("x [B,T,C] f32", "weight [B,T] f32", "index [B,K] i64"),
    ("y [B,1,C] f32",),
    (),
    """  one = Constant <value: tensor = int64[1] {1}> ()
  as_float = Cast <to: int = 1> (index)
  zeros = Sub (as_float, as_float)
  left = ScatterElements <axis: int = 1> (weight, index, zeros)
  row = Unsqueeze (left, one)
  y = MatMul (row, x)""",
    _fuse,
)


def _nearest(x: _Array, index: _Array, slots: _Array) -> tuple[_Array, ...]:
    unit = _unit(x)
    owner = (unit @ _take(unit, index).transpose(0, 2, 1)).argmax(-1)
    np.put_along_axis(owner, index, np.broadcast_to(slots, index.shape), axis=1)
    return (owner,)


NEAREST = TokenOp(
    "TcNearestTokens",
    ("x [B,T,C] f32", "index [B,K] i64", "slots [K] i64"),
    ("owner [B,T] i64",),
    (),
    _UNIT.format("x")
    + """
  column = Unsqueeze (index, last)
  kept = GatherND <batch_dims: int = 1> (unit, column)
  kept_t = Transpose <perm: ints = [0, 2, 1]> (kept)
  cosine = MatMul (unit, kept_t)
  nearest = ArgMax <axis: int = -1, keepdims: int = 0> (cosine)
  nothing = Sub (index, index)
  own = Add (nothing, slots)
  owner = ScatterElements <axis: int = 1> (nearest, index, own)""",
    _nearest,
)


def _match(metric: _Array, r: int, half: int, rest: int) -> tuple[_Array, ...]:
    unit = _unit(metric)
    edges = unit[:, 0::2] @ unit[:, 1::2].transpose(0, 2, 1)
    order = _top(edges.max(-1), half)
    source = order[:, :r]
    return np.sort(order[:, r:], axis=-1), source, _take(edges.argmax(-1), source)


def _match_all(metric: _Array) -> tuple[_Array, ...]:
    unit = _unit(metric)
    return ((unit[:, 0::2] @ unit[:, 1::2].transpose(0, 2, 1)).argmax(-1),)


_EDGES = (
    _UNIT.format("metric")
    + "\n"
    + _HALVES
    + """
  a = Slice (unit, zero, end, one, two)
  b = Slice (unit, one, end, one, two)
  b_t = Transpose <perm: ints = [0, 2, 1]> (b)
  edges = MatMul (a, b_t)
  edge, partner = TopK <axis: int = -1, largest: int = 1, sorted: int = 1> (edges, one)"""
)

MATCH = TokenOp(
    "TcMatchTokens",
    ("metric [B,T,D] f32",),
    ("keep [B,rest] i64", "source [B,r] i64", "target [B,r] i64"),
    ("r: pairs to merge", "half: number of even positions", "rest: half - r, at least 1"),
    _EDGES
    + """
  count = Constant <value: tensor = @half> ()
  merged = Constant <value: tensor = @r> ()
  left = Constant <value: tensor = @rest> ()
  best = Squeeze (edge, last)
  match = Squeeze (partner, last)
  sorted_edges, order = TopK <axis: int = -1, largest: int = 1, sorted: int = 1> (best, count)
  source = Slice (order, zero, merged, one)
  others = Slice (order, merged, end, one)
  target = GatherElements <axis: int = 1> (match, source)
"""
    + _SORT.format("others", "left", "keep"),
    _match,
)

MATCH_ALL = TokenOp(
    "TcMatchAllTokens",
    ("metric [B,T,D] f32",),
    ("target [B,T/2] i64",),
    (),
    _EDGES + "\n  target = Squeeze (partner, last)",
    _match_all,
)


def _merge(
    x: _Array, size: _Array, keep: _Array, source: _Array, target: _Array, slots: _Array
) -> tuple[_Array, ...]:
    even, odd = x[:, 0::2], x[:, 1::2]
    even_size, odd_size = size[:, 0::2], size[:, 1::2]
    onehot = (target[..., None] == slots).astype(np.float32).transpose(0, 2, 1)
    weight = _take(even_size, source)[..., None]
    total = odd_size[..., None] + onehot @ weight
    merged = (odd * odd_size[..., None] + onehot @ (_take(even, source) * weight)) / total
    return (
        np.concatenate([_take(even, keep), merged], 1),
        np.concatenate([_take(even_size, keep), total[..., 0]], 1),
    )


def _merge_all(x: _Array, size: _Array, target: _Array, slots: _Array) -> tuple[_Array, ...]:
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
    _HALVES
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

MERGE = TokenOp(
    "TcMergeTokens",
    ("x [B,T,C] f32", "size [B,T] f32", "keep [B,rest] i64", "source [B,r] i64",
     "target [B,r] i64", "slots [T/2] i64"),
    ("y [B,T-r,C] f32", "new_size [B,T-r] f32"),
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
)  # fmt: skip

MERGE_ALL = TokenOp(
    "TcMergeAllTokens",
    ("x [B,T,C] f32", "size [B,T] f32", "target [B,T/2] i64", "slots [T/2] i64"),
    ("merged [B,T/2,C] f32", "new_size [B,T/2] f32"),
    (),
    _SPLIT + _MERGED.format("even", "even_size") + "\n  new_size = Squeeze (total, last)",
    _merge_all,
)


def _return(
    x: _Array, kept: _Array, index: _Array, slots: _Array, stay: _Array
) -> tuple[_Array, ...]:
    y = x.copy()
    np.put_along_axis(y, index[..., None], kept, axis=1)
    return (y,)


RETURN = TokenOp(
    "TcReturnTokens",
    ("x [B,N,C]", "kept [B,K,C]", "index [B,K] i64", "slots [K] i64: 0 to K-1",
     "stay [N] i64: K to K+N-1"),
    ("y [B,N,C]",),
    (),
    """  zero = Constant <value: tensor = int64[1] {0}> ()
  one = Constant <value: tensor = int64[1] {1}> ()
  last = Constant <value: tensor = int64[1] {-1}> ()
  first = Slice (index, zero, one, one)
  nothing = Sub (first, first)
  unmoved = Add (nothing, stay)
  none = Sub (index, index)
  own = Add (none, slots)
  place = ScatterElements <axis: int = 1> (unmoved, index, own)
  column = Unsqueeze (place, last)
  both = Concat <axis: int = 1> (kept, x)
  y = GatherND <batch_dims: int = 1> (both, column)""",
    _return,
)  # fmt: skip

#: The registry.
OPS = (TOP_K, GATHER, FUSE, NEAREST, MATCH, MATCH_ALL, MERGE, MERGE_ALL, RETURN)
