"""R3: bipartite soft matching (ToMe): similar tokens become their size-weighted mean."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import compose_owner, take
from tcompile.passes.reduce.stage import Stage
from tcompile.planning.parameters import Parameter


def merge(given: ReducerInput) -> tuple[gs.Tensor, Stage]:
    """Patches at even positions match odd ones by cosine of mean_h K; the r best pairs merge.

    x_b' = (s_b x_b + Σ s_a x_a)/(s_b + Σ s_a), fp32 inside; order [unmerged even | odd]. The prefix
    takes no part (DESIGN 5.4).
    """
    b, before = given.b, given.stage
    count, r = before.count, before.count - given.keep
    half, odd = count - count // 2, count // 2
    metric = given.of_patches(given.core.keys())
    patches = given.of_patches(given.x, fp32=False)
    size = before.size
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
    after = Stage(
        given.keep,
        index=take(b, before.index, index),
        size=sizes,
        owner=compose_owner(b, before.owner, _owner(b, count, rest, keep, source, target)),
        positioned=before.positioned,
        prop_attn=bool(given.parameters["prop_attn"]),
    )
    return given.joined(merged, fp32=False), after


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


def _problem(ask: Ask) -> str:
    most, r = ask.count // 2, ask.count - ask.keep
    if r <= most:
        return ""
    return f"at most {most} of {ask.count} tokens can merge in one step, not {r}"


REDUCER = Reducer(
    "merge",
    merge,
    {"prop_attn": Parameter(bool, True, "later attentions add log size to the logits")},
    traits=frozenset({"merge"}),
    scored=False,
    segments=True,
    problem=_problem,
)
