"""R2: keep the best tokens and one token that stands for all the others.

Liang et al., EViT (ICLR 2022): weights=score. "Pruning One More Token is Enough" and Kong et al.,
SPViT (ECCV 2022): weights=mean.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import (
    TINY,
    choose,
    compose_owner,
    for_all,
    numbers,
    rows,
    take,
)
from tcompile.passes.reduce.token_state import TokenState

WEIGHTS = ("score", "normalised", "mean", "size")


def fuse(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """x' = [prefix | x_S | f | suffix], S the K − 1 best, ascending; fp32 inside. Over all j ∉ S

    * score: f = Σ c_j x_j, raw scores, not renormalised, as published;
    * normalised: Σ c_j x_j / Σ c_j, for scores of which none is negative;
    * mean: Σ x_j / n;  size: Σ s_j x_j / Σ s_j.
    """
    b = inputs.builder
    index = choose(inputs, inputs.keep - 1)
    patches = inputs.of_patches(inputs.x, fp32=False)
    best = rows(b, patches, index, fp32=False)
    joined = b.concat([best, rest_token(inputs, patches, index)], 1, fp32=False)
    return inputs.joined(joined, fp32=False), fused(inputs, index)


def rest_token(inputs: ReducerInput, patches: gs.Tensor, index: gs.Tensor) -> gs.Tensor:
    """[B, 1, C]: the token that stands for those that are not at index [B, K − 1]."""
    b, how, weight = inputs.builder, inputs.parameters.get("weights", "score"), inputs.score
    count = inputs.state.count
    if how == "size" and inputs.state.size is not None:
        weight = inputs.state.size
    elif how in ("mean", "size"):
        weight, how = for_all(inputs, np.full(count, 1 / (count - inputs.keep + 1)), np.float32), ""
    rest = b.call("TcFuseTokens", patches, weight, index, dtypes=[np.float32])[0]
    if how in ("normalised", "size"):
        none = b.op("Mul", b.cast(index, np.float32), b.const([0], np.float32))
        left = b.op("ScatterElements", weight, index, none, axis=1)
        # Scores may all be zero.
        total = b.op("Max", b.reduce("Sum", left, [1], 1), b.const([TINY], np.float32))
        rest = b.op("Div", rest, b.unsqueeze(total, 2))
    return rest


def fused(inputs: ReducerInput, index: gs.Tensor) -> TokenState:
    """The state of [tokens at index [B, K − 1] | one for all the others]."""
    b, before, kept = inputs.builder, inputs.state, inputs.keep - 1
    first = b.slice(index, 1, 0, 1)
    zero = b.op("Mul", first, [0], dtype=np.int64)
    # Everything that was dropped belongs to the fused token, the last slot.
    last = b.op("Add", zero, b.const(np.full((1, before.count), kept)), dtype=np.int64)
    step = b.op("ScatterElements", last, index, numbers(b, index, kept), dtype=np.int64, axis=1)
    nowhere = b.op("Sub", zero, [1], dtype=np.int64)
    return TokenState(
        inputs.keep,
        index=b.concat([take(b, before.index, index), nowhere], 1),
        size=_sizes(inputs, index),
        owner=compose_owner(b, before.owner, step),
        positioned=False,
        prop_attn=before.prop_attn,
    )


def _sizes(inputs: ReducerInput, index: gs.Tensor) -> gs.Tensor | None:
    """Sizes survive only where an earlier merge made some: the fused one is the leftover sum."""
    b, size = inputs.builder, inputs.state.size
    if size is None:
        return None
    kept = take(b, size, index)
    left = b.op("Sub", b.reduce("Sum", size, [1], 1), b.reduce("Sum", kept, [1], 1))
    return b.concat([kept, left], 1)


def problem(ask: Ask) -> str:
    return "" if ask.keep > 1 else "a fused token needs at least one token kept beside it"


REDUCER = Reducer(
    "fuse",
    fuse,
    {
        "weights": Parameter(
            str,
            "score",
            "what the others are weighted by in the one token that stands for them",
            WEIGHTS,
        )
    },
    traits=frozenset({"fuse"}),
    problem=problem,
)
