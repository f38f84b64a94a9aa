"""Merging by any matching: what becomes of tokens that merge, their sizes and their owner map.

One op for each way (`reducers.merge_match`), since a function body cannot choose by an attribute.
One kernel does them all.
"""

from __future__ import annotations

import numpy as np

from tcompile.plugins.ops.common import take
from tcompile.plugins.ops.merge import added
from tcompile.plugins.spec import Array, TokenOp

#: Squares of lengths are no less.
_TINY_SQUARE = 1e-30


def _length(x: Array) -> Array:
    with np.errstate(over="ignore"):
        squares = (x.astype(np.float32) ** 2).sum(-1, dtype=np.float32)
    return np.asarray(np.sqrt(np.maximum(squares, _TINY_SQUARE)))


def _bookkeeping(size: Array, owner: Array, keep: Array, source: Array, slot: Array) -> list[Array]:
    step = np.zeros(size.shape, np.int64)
    np.put_along_axis(step, keep, np.broadcast_to(np.arange(keep.shape[1]), keep.shape), axis=1)
    np.put_along_axis(step, source, slot, axis=1)
    total = added(take(size, keep), slot, take(size, source)).astype(np.float32)
    return [total, np.where(owner < 0, owner, take(step, np.maximum(owner, 0)))]


def _mean(
    x: Array,
    weight: Array,
    size: Array,
    owner: Array,
    keep: Array,
    source: Array,
    slot: Array,
    slots: Array,
) -> tuple[Array, ...]:
    own, leaving = take(weight, keep), take(weight, source)
    with np.errstate(all="ignore"):
        total = added(own, slot, leaving)
        summed = added(take(x, keep) * own[..., None], slot, take(x, source) * leaving[..., None])
        mean = (summed / total[..., None]).astype(np.float32)
    return mean, *_bookkeeping(size, owner, keep, source, slot)


def _plain(
    x: Array, size: Array, owner: Array, keep: Array, source: Array, slot: Array, slots: Array
) -> tuple[Array, ...]:
    ones = np.ones(x.shape[:2], np.float32)
    return _mean(x, ones, size, owner, keep, source, slot, slots)


def _mlerp(
    x: Array,
    weight: Array,
    size: Array,
    owner: Array,
    keep: Array,
    source: Array,
    slot: Array,
    slots: Array,
) -> tuple[Array, ...]:
    mean, *others = _mean(x, weight, size, owner, keep, source, slot, slots)
    longest = _length(take(x, keep))
    for b, (row, value) in enumerate(zip(slot, _length(take(x, source)), strict=True)):
        np.maximum.at(longest[b], row, value)
    with np.errstate(all="ignore"):
        turned = mean / _length(mean)[..., None] * longest[..., None]
    return turned.astype(np.float32), *others


def _drop(
    x: Array, size: Array, owner: Array, keep: Array, source: Array, slot: Array, slots: Array
) -> tuple[Array, ...]:
    return take(x, keep), *_bookkeeping(size, owner, keep, source, slot)


_STEP = """  zero = Constant <value: tensor = int64[1] {0}> ()
  one = Constant <value: tensor = int64[1] {1}> ()
  last = Constant <value: tensor = int64[1] {-1}> ()
  kept_column = Unsqueeze (keep, last)
  staying = GatherND <batch_dims: int = 1> (x, kept_column)
  whole = Equal (size, size)
  anything = Cast <to: int = 7> (whole)
  none = Sub (keep, keep)
  own = Add (none, slots)
  stayed = ScatterElements <axis: int = 1> (anything, keep, own)
  step = ScatterElements <axis: int = 1> (stayed, source, slot)
  lost = Less (owner, zero)
  safe = Where (lost, zero, owner)
  found = GatherElements <axis: int = 1> (step, safe)
  new_owner = Where (lost, owner, found)
  row = Unsqueeze (slot, one)
  places = Unsqueeze (slots, last)
  hot = Equal (row, places)
  onehot = Cast <to: int = 1> (hot)
  size_kept = GatherElements <axis: int = 1> (size, keep)
  size_left = GatherElements <axis: int = 1> (size, source)
  size_column = Unsqueeze (size_left, last)
  size_arriving = MatMul (onehot, size_column)
  size_more = Squeeze (size_arriving, last)
  new_size = Add (size_kept, size_more)
"""

_LEAVING = """  left_column = Unsqueeze (source, last)
  leaving = GatherND <batch_dims: int = 1> (x, left_column)
"""

_WEIGHED = (
    _LEAVING
    + """  weight_kept = GatherElements <axis: int = 1> (weight, keep)
  weight_left = GatherElements <axis: int = 1> (weight, source)
  own_weight = Unsqueeze (weight_kept, last)
  weight_column = Unsqueeze (weight_left, last)
  own_part = Mul (staying, own_weight)
  left_part = Mul (leaving, weight_column)
  arriving = MatMul (onehot, left_part)
  arriving_weight = MatMul (onehot, weight_column)
  total = Add (own_weight, arriving_weight)
  sum = Add (own_part, arriving)
  {0} = Div (sum, total)
"""
)

_PLAIN = (
    _LEAVING
    + """  many = ReduceSum <keepdims: int = 1> (onehot, last)
  single = Constant <value_float: float = 1.0> ()
  count = Add (many, single)
  arriving = MatMul (onehot, leaving)
  sum = Add (staying, arriving)
  y = Div (sum, count)
"""
)


def _long(x: str, result: str) -> str:
    """Text of a body: lengths of rows."""
    return f"""  {x}_squares = Mul ({x}, {x})
  {x}_summed = ReduceSum <keepdims: int = 1> ({x}_squares, last)
  {x}_safe = Max ({x}_summed, tiny)
  {result} = Sqrt ({x}_safe)
"""


_MLERP = (
    _WEIGHED.format("mean")
    + "  tiny = Constant <value_float: float = 1e-30> ()\n"
    + _long("staying", "own_length")
    + _long("leaving", "left_length")
    + _long("mean", "mean_length")
    + """  left_row = Transpose <perm: ints = [0, 2, 1]> (left_length)
  lengths = Mul (onehot, left_row)
  longest_left, unused = TopK <axis: int = -1, largest: int = 1, sorted: int = 1> (lengths, one)
  longest = Max (own_length, longest_left)
  direction = Div (mean, mean_length)
  y = Mul (direction, longest)
"""
)

_X = ("x [B,T,C] data: tokens",)
_WEIGHT = ("weight [B,T] f32: of each in the mean, above 0: its size, or score times size",)
_REST = (
    "size [B,T] f32: how many each stands for",
    "owner [B,N] index: which of the T tokens stands for each original one, -1: none",
    "keep [B,K] index: tokens that stay",
    "source [B,r] index: tokens that leave: all others",
    "slot [B,r] index: whom each becomes part of, as a number among those that stay",
    "slots [K] index: 0 to K-1",
)
_GIVES = (
    "y [B,K,C] data: the tokens that stay, with what they took in",
    "new_size [B,K] f32: how many each stands for: sums",
    "new_owner [B,N] index: which of the K tokens stands for each original one",
)
_LIMITS = ("K+r==T", "T<=16384", "N<=16384")
_TAIL = """ Sizes add up; an owner becomes the token that its own went into, -1 stays. Written by
the plugin lowering for `merge` (other splits than `alternate`) and `assign`."""

COMBINE_MEAN = TokenOp(
    "TcCombineMeanTokens",
    _X + _WEIGHT + _REST,
    _GIVES,
    (),
    _STEP + _WEIGHED.format("y"),
    _mean,
    doc="y_k = sum of w x/sum of w over a token that stays and all it takes in, in fp32." + _TAIL,
    limits=_LIMITS,
    unused=("slots",),
)

COMBINE_PLAIN = TokenOp(
    "TcCombinePlainTokens",
    _X + _REST,
    _GIVES,
    (),
    _STEP + _PLAIN,
    _plain,
    doc="The same with equal weights: the mean of a token that stays and all it takes in." + _TAIL,
    limits=_LIMITS,
    unused=("slots",),
)

COMBINE_MLERP = TokenOp(
    "TcCombineMlerpTokens",
    _X + _WEIGHT + _REST,
    _GIVES,
    (),
    _STEP + _MLERP,
    _mlerp,
    doc="The direction of the weighted mean at the length of the longest of them: "
    "m/|m| times max |x| (MLERP of Token Fusion)." + _TAIL,
    limits=_LIMITS,
    unused=("slots",),
)

COMBINE_DROP = TokenOp(
    "TcCombineDropTokens",
    _X + _REST,
    _GIVES,
    (),
    _STEP + "  y = Identity (staying)\n",
    _drop,
    doc="The tokens that stay as they are; what leaves only counts." + _TAIL,
    limits=_LIMITS,
    unused=("slots",),
    exact=("y",),
)
