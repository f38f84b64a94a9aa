"""Moving tokens: out of a sequence, and back into one. All outputs are copies."""

from __future__ import annotations

import numpy as np

from tcompile.plugins.ops.common import take
from tcompile.plugins.spec import Array, TokenOp

GATHER = TokenOp(
    "TcGatherTokens",
    ("x [B,T,C] data: tokens", "index [B,K] index: which, 0 to T-1, any order, repeats allowed"),
    ("y [B,K,C] data: these",),
    (),
    """  last = Constant <value: tensor = int64[1] {-1}> ()
  column = Unsqueeze (index, last)
  y = GatherND <batch_dims: int = 1> (x, column)""",
    lambda x, index: (take(x, index),),
    doc="""y[b, k] = x[b, index[b, k]]. Every reducer that keeps tokens uses it; with an owner map
for an index it is also unmerging, where every token has an owner (`return` with fill=owner, token
outputs). A negative index counts from the end, as in ONNX; a row of any other index beyond T is
zeros in the kernel and an error in ONNX Runtime.""",
    limits=("T<=16384", "K<=16384"),
    exact=("y",),
)


def _take_all(x: Array, size: Array, table: Array, rows: Array) -> tuple[Array, ...]:
    return take(x, rows), take(size, rows), table[rows]


TAKE = TokenOp(
    "TcTakeTokens",
    (
        "x [B,N,C] data: tokens",
        "size [B,N] f32: what each counts for",
        "table [N,E] table: of positions, one for all images",
        "rows [B,M] index: which, 0 to N-1, any order, repeats allowed",
    ),
    (
        "y [B,M,C] data: these tokens",
        "new_size [B,M] f32: their sizes",
        "new_table [B,M,E] table: their rows of the table",
    ),
    (),
    """  last = Constant <value: tensor = int64[1] {-1}> ()
  column = Unsqueeze (rows, last)
  y = GatherND <batch_dims: int = 1> (x, column)
  new_size = GatherElements <axis: int = 1> (size, rows)
  new_table = Gather <axis: int = 0> (table, rows)""",
    _take_all,
    doc="""The stream, the sizes and a table of positions (rotary, absolute) gathered in one pass.
Written by the plugin lowering where a `TcGatherTokens` of the stream and gathers of sizes and
tables share their index (`topk` on models with rotary positions, after a `merge` that left
sizes).""",
    limits=("N<=16384", "M<=16384"),
    exact=("y", "new_size", "new_table"),
)


def _unmerge(x: Array, owner: Array, k: int) -> tuple[Array, ...]:
    y = take(x, np.maximum(owner, 0))
    return (np.where((owner < 0)[..., None], np.zeros((), x.dtype), y),)


UNMERGE = TokenOp(
    "TcUnmergeTokens",
    (
        "x [B,K,C] data: the tokens that are left",
        "owner [B,N] index: which of them each token became part of, -1: none",
    ),
    ("y [B,N,C] data: for every token its owner's row",),
    ("k: K",),
    """  pads = Constant <value: tensor = int64[6] {0, 0, 0, 0, 1, 0}> ()
  zero = Constant <value: tensor = int64[1] {0}> ()
  last = Constant <value: tensor = int64[1] {-1}> ()
  count = Constant <value: tensor = @k> ()
  longer = Pad (x, pads)
  lost = Less (owner, zero)
  place = Where (lost, count, owner)
  column = Unsqueeze (place, last)
  y = GatherND <batch_dims: int = 1> (longer, column)""",
    _unmerge,
    doc="""The whole map again: y[b, n] = x[b, owner[b, n]], zeros where a token was dropped and
nothing stands for it. For dense outputs of models whose reducers leave tokens without an owner;
where all have one, `TcGatherTokens` does the same.""",
    limits=("K<=16384", "N<=16384", "k==K"),
    exact=("y",),
)


def _return(x: Array, kept: Array, index: Array, slots: Array, stay: Array) -> tuple[Array, ...]:
    y = x.copy()
    np.put_along_axis(y, index[..., None], kept, axis=1)
    return (y,)


RETURN = TokenOp(
    "TcReturnTokens",
    (
        "x [B,N,C] data: the sequence as it was",
        "kept [B,K,C] data: tokens that went another way",
        "index [B,K] index: where they belong, no two alike",
        "slots [K] index: 0 to K-1",
        "stay [N] index: K to K+N-1",
    ),
    ("y [B,N,C] data: x with `kept` put back",),
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
    doc="""Scatter back: y[b, index[b, k]] = kept[b, k], every other row as in x. `bypass` uses it:
the best tokens run through a block, the others pass it unchanged. An index beyond N puts
nothing.""",
    limits=("K<=N", "N<=16384"),
    unused=("slots", "stay"),
    exact=("y",),
)
