"""ToMe's step on the whole stream, prefix included, in few operators: for a CPU.

There every operator is a call, and one that copies half of the tokens costs as much as one that
merges them. These are bodies only: no plugin and no kernel has their names, and no file keeps the
calls (`passes/lower/stream.py` writes them right before they are inlined). They may use what
TensorRT does not take: a scatter that adds, TopK of integers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tcompile.plugins.ops.common import HALVES
from tcompile.plugins.ops.match import BEST_PAIRS, MATCH
from tcompile.plugins.ops.merge import MERGE
from tcompile.plugins.spec import Array, TokenOp


def _match(
    metric: Array, prefix: int, first_odd: int, r: int, half: int, rest: int
) -> tuple[Array, ...]:
    return MATCH.reference(metric[:, prefix:], r=r, half=half, rest=rest)


#: `TcMatchTokens` of rows that lie behind a prefix.
MATCH_STREAM = TokenOp(
    "TcMatchStream",
    ("metric [B,N,D] data: what tokens are compared by, the prefix in front",),
    MATCH.outputs,
    ("prefix: rows in front that take no part", "first_odd: prefix + 1", *MATCH.attributes),
    "  unit = LpNormalization <axis: int = -1, p: int = 2> (metric)\n"
    + HALVES
    + """
  last = Constant <value: tensor = int64[1] {-1}> ()
  start = Constant <value: tensor = @prefix> ()
  second = Constant <value: tensor = @first_odd> ()
  a = Slice (unit, start, end, one, two)
  b = Slice (unit, second, end, one, two)
  b_t = Transpose <perm: ints = [0, 2, 1]> (b)
  edges = MatMul (a, b_t)
  edge, partner = TopK <axis: int = -1, largest: int = 1, sorted: int = 1> (edges, one)"""
    + BEST_PAIRS
    + "  keep, unused = TopK <axis: int = -1, largest: int = 0, sorted: int = 1> (others, left)",
    _match,
    doc=MATCH.doc,
    limits=("rest==half-r", "1<=r", "1<=rest"),
)


def _merge(
    x: Array,
    size: Array,
    keep: Array,
    source: Array,
    target: Array,
    odds: Array,
    slots: Array,
    *front: Array,
    prefix: int,
    own: int,
) -> tuple[Array, ...]:
    patches, sizes = MERGE.reference(x[:, prefix:], size[:, prefix:], keep, source, target, odds)
    return (
        np.concatenate([x[:, :prefix], patches], 1).astype(np.float32),
        np.concatenate([size[:, :prefix], sizes], 1).astype(np.float32),
    )


#: `TcMergeTokens` of rows that lie behind a prefix. A mean moves towards what arrives:
#: x_b' = x_b + sum of s_a/s_b' (x_a - x_b), s_b' = s_b + sum of s_a, so that only rows that move
#: are computed with, and those that nothing merges into stay as they are to the last bit.
MERGE_STREAM = TokenOp(
    "TcMergeStream",
    (
        "x [B,N,C] data: tokens, the prefix in front",
        "size [B,N] f32: how many each stands for, 1 in the prefix",
        "keep [B,rest] index: even positions behind the prefix that stay",
        "source [B,r] index: even ones that merge",
        "target [B,r] index: whom into, among the odd ones",
        "odds [O] index: where the odd ones are",
        "slots [K,1] index: 0 to K-1",
        "front [prefix] index: where the prefix is",
    ),
    (
        "y [B,K,C] data: [prefix | unmerged even | odd]",
        "new_size [B,K] f32: how many each stands for",
    ),
    ("prefix: rows in front that take no part", "own: prefix + rest, where the odd ones begin"),
    """  zero = Constant <value: tensor = int64[1] {0}> ()
  one = Constant <value: tensor = int64[1] {1}> ()
  two = Constant <value: tensor = int64[1] {2}> ()
  last = Constant <value: tensor = int64[1] {-1}> ()
  start = Constant <value: tensor = @prefix> ()
  begin = Constant <value: tensor = @own> ()
  first = Slice (target, zero, one, one)
  nothing = Sub (first, first)
  head = Add (nothing, front)
  tail = Add (nothing, odds)
  twice = Mul (keep, two)
  staying = Add (twice, start)
  rows = Concat <axis: int = 1> (head, staying, tail)
  doubled = Mul (source, two)
  leaving = Add (doubled, start)
  place = Add (target, begin)
  row_column = Unsqueeze (rows, last)
  leaving_column = Unsqueeze (leaving, last)
  place_column = Unsqueeze (place, last)
  before = GatherElements <axis: int = 1> (size, rows)
  arriving = GatherElements <axis: int = 1> (size, leaving)
  new_size = ScatterElements <axis: int = 1, reduction: string = "add"> (before, place, arriving)
  total = GatherElements <axis: int = 1> (new_size, place)
  share = Div (arriving, total)
  weight = Unsqueeze (share, last)
  kept = GatherND <batch_dims: int = 1> (x, row_column)
  moved = GatherND <batch_dims: int = 1> (x, leaving_column)
  reached = GatherND <batch_dims: int = 1> (kept, place_column)
  way = Sub (moved, reached)
  step = Mul (way, weight)
  place_row = Unsqueeze (place, one)
  hot = Equal (place_row, slots)
  onehot = Cast <to: int = 1> (hot)
  change = MatMul (onehot, step)
  y = Add (kept, change)""",
    _merge,
    doc=MERGE.doc,
    limits=("K==N-r", "own==prefix+rest", "rest+r+O==N-prefix"),
)

#: The same where there is no prefix.
MERGE_WHOLE = replace(
    MERGE_STREAM,
    name="TcMergeWhole",
    inputs=MERGE_STREAM.inputs[:-1],
    body=MERGE_STREAM.body.replace("  head = Add (nothing, front)\n", "").replace("(head, ", "("),
)
