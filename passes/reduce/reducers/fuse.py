"""R2: keep the best tokens and one token that stands for all the others (EViT)."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import choose, compose_owner, take
from tcompile.passes.reduce.stage import Stage


def fuse(given: ReducerInput) -> tuple[gs.Tensor, Stage]:
    """x' = [prefix | x_S | Σ_{j∉S} c_j x_j | suffix], S the K−1 best, ascending; fp32 inside.

    The weights are the raw scores, not renormalised, as published (METHODS 4.9).
    """
    b, before = given.b, given.stage
    kept = given.keep - 1
    index = choose(given, kept)
    patches = given.of_patches(given.x, fp32=False)
    best = b.call("TcGatherTokens", patches, index, dtypes=[given.x.dtype], fp32=False)[0]
    rest = b.call("TcFuseTokens", patches, given.score, index, dtypes=[np.float32])[0]
    joined = b.concat([best, rest], 1, fp32=False)

    # Everything that was dropped belongs to the fused token, the last slot.
    base = b.const(np.full((1, before.count), kept))
    first = b.slice(index, 1, 0, 1)
    zero = b.op("Sub", first, first, dtype=np.int64)
    all_fused = b.op("Add", zero, base, dtype=np.int64)
    nothing = b.op("Sub", index, index, dtype=np.int64)
    slots = b.op("Add", nothing, b.const(np.arange(kept)), dtype=np.int64)
    step = b.op("ScatterElements", all_fused, index, slots, dtype=np.int64, axis=1)
    minus_one = b.op("Add", zero, b.const([[-1]]), dtype=np.int64)
    after = Stage(
        given.keep,
        index=b.concat([take(b, before.index, index), minus_one], 1),
        size=_sizes(given, index),
        owner=compose_owner(b, before.owner, step),
        positioned=False,
        prop_attn=before.prop_attn,
    )
    return given.joined(joined, fp32=False), after


def _sizes(given: ReducerInput, index: gs.Tensor) -> gs.Tensor | None:
    """Sizes survive only where an earlier merge made some: the fused one is the leftover sum."""
    b, size = given.b, given.stage.size
    if size is None:
        return None
    kept = take(b, size, index)
    left = b.op("Sub", b.reduce("Sum", size, [1], 1), b.reduce("Sum", kept, [1], 1))
    return b.concat([kept, left], 1)


def _problem(ask: Ask) -> str:
    return "" if ask.keep > 1 else "a fused token needs at least one token kept beside it"


REDUCER = Reducer("fuse", fuse, traits=frozenset({"fuse"}), problem=_problem)
