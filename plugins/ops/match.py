"""The most similar token of each: cosine, without a matrix of similarities in memory.

All of them: similarity = cos of two rows in fp32, a row's length no less than 1e-6; a row of zeros
is like nothing (0), NaN counts as -Inf; of equal similarities the lower index wins. Where two
candidates are alike within rounding (`near` in benchmarks/gpu/compare.py), either is right.
"""

from __future__ import annotations

import numpy as np

from tcompile.plugins.ops.common import HALVES, SORT, cosines, take, top, unit_body
from tcompile.plugins.spec import Array, TokenOp


def _partner(a: Array, b: Array) -> tuple[Array, ...]:
    found = cosines(a, b)
    return found.argmax(-1), found.max(-1).astype(np.float32)


PARTNER = TokenOp(
    "TcPartnerTokens",
    ("a [B,M,D] data: who looks for a partner", "b [B,N,D] data: among whom"),
    (
        "partner [B,M] index: of each the one in b with the largest cosine",
        "similarity [B,M] f32: that cosine",
    ),
    (),
    unit_body("a", "unit_a", "_a")
    + "\n"
    + unit_body("b", "unit_b", "_b")
    + """
  one = Constant <value: tensor = int64[1] {1}> ()
  across = Transpose <perm: ints = [0, 2, 1]> (unit_b)
  cosine = MatMul (unit_a, across)
  value, place = TopK <axis: int = -1, largest: int = 1, sorted: int = 1> (cosine, one)
  partner = Squeeze (place, last_a)
  similarity = Squeeze (value, last_a)""",
    _partner,
    doc="""The bipartite matching itself, for any two sets of tokens. Written by the plugin lowering
for `assign`, `contextual` and `merge` with other splits than `alternate`.""",
    limits=("M<=16384", "N<=16384"),
)


def _nearest(x: Array, index: Array, slots: Array) -> tuple[Array, ...]:
    owner = cosines(x, take(x, index)).argmax(-1)
    np.put_along_axis(owner, index, np.broadcast_to(slots, index.shape), axis=1)
    return (owner,)


NEAREST = TokenOp(
    "TcNearestTokens",
    (
        "x [B,T,C] data: tokens",
        "index [B,K] index: those that stay, no two alike",
        "slots [K] index: 0 to K-1",
    ),
    ("owner [B,T] index: of each token the number of the kept one with the largest cosine",),
    (),
    unit_body("x")
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
    doc="""Whom each token belongs to when only some stay: those to themselves, the others to the
kept token most like them. `topk`, `propagate` and `diverse` use it for owner maps.""",
    limits=("K<=T", "T<=16384"),
    unused=("slots",),
)


def _match(metric: Array, r: int, half: int, rest: int) -> tuple[Array, ...]:
    edges = cosines(metric[:, 0::2], metric[:, 1::2])
    order = top(edges.max(-1), half)
    source = order[:, :r]
    return np.sort(order[:, r:], axis=-1), source, take(edges.argmax(-1), source)


def _match_all(metric: Array) -> tuple[Array, ...]:
    return (cosines(metric[:, 0::2], metric[:, 1::2]).argmax(-1),)


_EDGES = (
    unit_body("metric")
    + "\n"
    + HALVES
    + """
  a = Slice (unit, zero, end, one, two)
  b = Slice (unit, one, end, one, two)
  b_t = Transpose <perm: ints = [0, 2, 1]> (b)
  edges = MatMul (a, b_t)
  edge, partner = TopK <axis: int = -1, largest: int = 1, sorted: int = 1> (edges, one)"""
)

#: The r best pairs of `edge` and `partner`; `others` are the even positions that stay, unsorted.
BEST_PAIRS = """
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

MATCH = TokenOp(
    "TcMatchTokens",
    ("metric [B,T,D] data: what tokens are compared by",),
    (
        "keep [B,rest] index: even positions that stay, ascending, as numbers among the even ones",
        "source [B,r] index: even positions that merge, best pair first, numbered likewise",
        "target [B,r] index: whom each merges into, as a number among the odd positions",
    ),
    ("r: pairs to merge", "half: number of even positions", "rest: half - r, at least 1"),
    _EDGES + BEST_PAIRS + SORT.format("others", "left", "keep"),
    _match,
    doc="""ToMe's bipartite soft matching: every even position finds its best odd one, the r best
pairs merge. `merge` with split=alternate uses it.""",
    limits=("half==T-T/2", "rest==half-r", "1<=r", "1<=rest", "2<=T", "T<=16384"),
)

MATCH_ALL = TokenOp(
    "TcMatchAllTokens",
    ("metric [B,T,D] data: what tokens are compared by",),
    ("target [B,T-T/2] index: of each even position the odd one most like it",),
    (),
    _EDGES + "\n  target = Squeeze (partner, last)",
    _match_all,
    doc="""The same where every even position merges. `merge` with split=alternate uses it to keep
half of the tokens.""",
    limits=("2<=T", "T<=16384"),
)
