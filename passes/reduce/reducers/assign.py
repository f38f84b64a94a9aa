"""R4: the best tokens are centres; each other one becomes part of the centre it is most like.

Chen et al., DiffRate (ICCV 2023): its merge, after `topk` in a chain.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import (
    choose,
    metric,
    numbers,
    others,
    placed,
    rows,
    sorts,
    staying,
)
from tcompile.passes.reduce.reducers.merge_match import Groups
from tcompile.passes.reduce.token_state import TokenState

#: No size is less: its logarithm is added to logits.
_LEAST = 1e-3


def assign(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """x' = [prefix | x'_S | suffix], S = the K best, ascending; each j ∉ S goes to
    c(j) = argmax_{k∈S} cos(m_j, m_k), m the stream or the keys' mean; fp32 inside.

    * combine: mean (x_k + Σ x_j)/(1 + n_k), as DiffRate; size_mean: the same weighted by size;
    * sizes: similarity s_k + Σ s_j·cos_jk, as DiffRate, no less than 0.001 where opposite tokens
      meet; sum s_k + Σ s_j; none: they are as before. Later attentions add log size but for none.
    """
    b, before, parameters = inputs.builder, inputs.state, inputs.parameters
    kept = choose(inputs, inputs.keep)
    gone = others(b, kept, before.count, before.count - inputs.keep)
    alike, slot = closest(inputs, metric(inputs), gone, kept)
    groups = Groups(inputs, kept, gone, slot)
    merged = groups.features("plain" if parameters["combine"] == "mean" else "mean")
    step = placed(b, before.count, (kept, numbers(b, kept, inputs.keep)), (gone, slot))
    if parameters["sizes"] == "none":
        return inputs.joined(merged, fp32=False), staying(inputs, kept, step)
    size = groups.sizes() if parameters["sizes"] == "sum" else _grown(inputs, groups, alike)
    after = staying(inputs, kept, step, size=size, prop_attn=True)
    return inputs.joined(merged, fp32=False), after


def closest(
    inputs: ReducerInput, features: gs.Tensor, gone: gs.Tensor, kept: gs.Tensor
) -> tuple[gs.Tensor, gs.Tensor]:
    """[B, r] f32 and i64: for tokens at gone [B, r] the largest cosine to those at kept [B, K],
    and which of these has it."""
    b = inputs.builder
    each = b.unit(features)
    centres = b.transpose(rows(b, each, kept), [0, 2, 1])
    cosine = b.op("MatMul", rows(b, each, gone), centres)
    slot = b.op("ArgMax", cosine, dtype=np.int64, axis=-1, keepdims=0)
    return b.reduce("Max", cosine, [2]), slot


def _grown(inputs: ReducerInput, groups: Groups, alike: gs.Tensor) -> gs.Tensor:
    """[B, K]: s_k + Σ s_j·cos_jk."""
    b, size = inputs.builder, inputs.state.size
    arriving = alike
    own: gs.Tensor = b.const([1], np.float32)
    if size is not None:
        arriving = b.op("Mul", alike, b.op("GatherElements", size, groups.source, axis=1))
        own = b.op("GatherElements", size, groups.keep, axis=1)
    more = b.squeeze(b.op("MatMul", groups.onehot, b.unsqueeze(arriving, 2)), 2)
    return b.op("Max", b.op("Add", own, more), b.const([_LEAST], np.float32))


def _problem(ask: Ask) -> str:
    return sorts(ask.keep, ask.count - ask.keep)


REDUCER = Reducer(
    "assign",
    assign,
    {
        "metric": Parameter(str, "x", "what cosines are taken of", ("keys", "x")),
        "combine": Parameter(str, "mean", "what becomes of a centre", ("mean", "size_mean")),
        "sizes": Parameter(
            str,
            "similarity",
            "what a centre counts for from here on",
            ("similarity", "sum", "none"),
        ),
    },
    traits=frozenset({"merge"}),
    segments=True,
    problem=_problem,
)
