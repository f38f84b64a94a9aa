"""The tokens that stay: the k best."""

from __future__ import annotations

import numpy as np

from tcompile.plugins.ops.common import SORT, top
from tcompile.plugins.spec import Array, TokenOp

_CHOOSE = """  count = Constant <value: tensor = @k> ()
  best, chosen = TopK <axis: int = -1, largest: int = 1, sorted: int = 1> (scores, count)
""" + SORT.format("chosen", "count", "index")


def _top_k_tokens(scores: Array, k: int) -> tuple[Array, ...]:
    return (np.sort(top(scores, k), axis=-1),)


TOP_K = TokenOp(
    "TcTopKTokens",
    ("scores [B,T] data: larger = keep",),
    ("index [B,k] index: the tokens that stay, ascending",),
    ("k: how many tokens to keep",),
    _CHOOSE,
    _top_k_tokens,
    doc="""The k tokens with the largest scores, in the order they lie in. Of equal scores the lower
index wins, 0 and -0 are equal, NaN is less than everything. Every reducer that chooses by score
uses it (`reducers.common.choose`, `topk`, `fuse`, `bypass`, `windows`, `lines`, `quota`).""",
    limits=("k<=T", "T<=16384"),
)


def _select(scores: Array, fixed: Array, k: int, prefix: int) -> tuple[Array, ...]:
    index = np.sort(top(scores, k), axis=-1)
    head = np.broadcast_to(fixed, (len(index), prefix))
    return index, np.concatenate([head, index + prefix], 1)


SELECT = TokenOp(
    "TcSelectTokens",
    ("scores [B,T] data: larger = keep", "fixed [prefix] index: 0 to prefix-1"),
    (
        "index [B,k] index: the tokens that stay, ascending, numbered without the prefix",
        "rows [B,prefix+k] index: the prefix and these, as places in the whole sequence",
    ),
    ("k: how many tokens to keep", "prefix: tokens in front that have no score and always stay"),
    _CHOOSE
    + """
  ahead = Constant <value: tensor = @prefix> ()
  zero = Constant <value: tensor = int64[1] {0}> ()
  one = Constant <value: tensor = int64[1] {1}> ()
  first = Slice (index, zero, one, one)
  nothing = Sub (first, first)
  head = Add (nothing, fixed)
  moved = Add (index, ahead)
  rows = Concat <axis: int = 1> (head, moved)""",
    _select,
    doc="""Like `TcTopKTokens` where tokens without a score lie in front (CLS, registers): `rows`
takes whole sequences apart with one gather (`TcTakeTokens`), without slicing the prefix off and
joining it again. Written by the plugin lowering in place of `TcTopKTokens` under `topk` and
`bypass`.""",
    limits=("k<=T", "prefix+T<=16384"),
    unused=("fixed",),
)
