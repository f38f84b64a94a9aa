"""R4: what leaves is spread over those that it corresponds with most (FiCoCo-V).

Han et al., FiCoCo (2024).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import (
    choose,
    numbers,
    onehot,
    others,
    placed,
    rows,
    sorts,
    staying,
)
from tcompile.passes.reduce.token_state import TokenState


def soft(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """x' = [prefix | x'_S | suffix], S = the K best, ascending; each i ∉ S goes to the `targets`
    k ∈ S of largest correlation L_ik = mean_h q_i·k_k/√d by w_ik = softmax over these;

        x'_k = (x_k + Σ_i w_ik x_i) / (1 + Σ_i w_ik),  fp32 inside.

    L are the attention's own logits, before its softmax; the published quantile
    0.998 of some 577 is one or two targets. The count is forgotten, as published: no token
    counts for more than before. The owner is the first target. Q·Kᵀ is computed once more.
    """
    b, before, targets = inputs.builder, inputs.state, inputs.parameters["targets"]
    kept = choose(inputs, inputs.keep)
    gone = others(b, kept, before.count, before.count - inputs.keep)
    patches = inputs.of_patches(inputs.x, fp32=False)
    # [B, T, T] → [B, r, T] → [B, T, r] → [B, K, r] → [B, r, K]
    logits = b.reduce("Mean", inputs.attention.logits(), [1])
    logits = inputs.of_patches(b.transpose(inputs.of_patches(logits), [0, 2, 1]))
    edges = rows(b, b.transpose(rows(b, logits, kept), [0, 2, 1]), gone)
    value, best = b.top_k(edges, targets)
    share = b.op("Softmax", value, axis=-1)
    slots = [b.squeeze(b.slice(best, 2, i, i + 1), 2) for i in range(targets)]
    weight: gs.Tensor | None = None
    for i, slot in enumerate(slots):
        into = onehot(b, slot, inputs.keep)
        if targets > 1:
            into = b.op("Mul", into, b.transpose(b.slice(share, 2, i, i + 1), [0, 2, 1]))
        weight = into if weight is None else b.op("Add", weight, into)
    assert weight is not None
    total = b.op("Add", rows(b, patches, kept), b.op("MatMul", weight, rows(b, patches, gone)))
    size = b.op("Add", b.reduce("Sum", weight, [2], 1), b.const([1], np.float32))
    step = placed(b, before.count, (kept, numbers(b, kept, inputs.keep)), (gone, slots[0]))
    return inputs.joined(b.op("Div", total, size), fp32=False), staying(inputs, kept, step)


def _problem(ask: Ask) -> str:
    if ask.parameters["targets"] > ask.keep:
        return f"targets={ask.parameters['targets']} are more than the {ask.keep} tokens kept"
    return sorts(ask.keep, ask.count - ask.keep)


REDUCER = Reducer(
    "soft",
    soft,
    {"targets": Parameter(int, 1, "tokens that each one that leaves goes to", least=1, most=32)},
    first=True,
    problem=_problem,
)
