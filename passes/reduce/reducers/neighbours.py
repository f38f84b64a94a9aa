"""R4: each token that is kept takes in those around it in key space; one token for the rest.

Shang et al., LLaVA-PruMerge (ICCV 2025).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import choose, metric, rows, sorts
from tcompile.passes.reduce.reducers.fuse import fused, problem, rest_token
from tcompile.passes.reduce.token_state import TokenState

#: Below every cosine: no token is its own neighbour.
_FAR = -4.0


def neighbours(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """x' = [prefix | x_k + Σ_{j∈N(k)} c_j x_j, k ∈ S | Σ_{j∉S} c_j x_j | suffix]; fp32 inside.

    S: the K − 1 best by score c, ascending. N(k): the `neighbours` others (all, if there are fewer)
    of largest cosine to k, in S or not: by the keys of all heads joined, their mean, or the stream.
    Sums are not renormalised, as published, and no token counts for more than before.
    """
    b, count = inputs.builder, inputs.state.count
    index = choose(inputs, inputs.keep - 1)
    patches = inputs.of_patches(inputs.x, fp32=False)
    directions = b.unit(_features(inputs))
    kept = rows(b, directions, index)
    cosine = b.op("MatMul", kept, b.transpose(directions, [0, 2, 1]))
    places = b.const(np.arange(count).reshape(1, 1, -1))
    itself = b.op("Equal", b.unsqueeze(index, 2), places, dtype=np.bool_)
    near = b.op("Where", itself, b.const([_FAR], np.float32), cosine)
    many = min(inputs.parameters["neighbours"], count - 1)
    value, best = b.top_k(near, many)
    zero, one = b.const([0], np.float32), b.const([1], np.float32)
    ones = b.op("Add", b.op("Mul", value, zero), one)
    taken = b.op("ScatterElements", b.op("Mul", cosine, zero), best, ones, axis=2)
    assert inputs.score is not None
    weight = b.op("Mul", taken, b.unsqueeze(inputs.score, 1))
    around = b.op("MatMul", weight, patches)
    own = b.op("Add", rows(b, patches, index), around)
    joined = b.concat([own, rest_token(inputs, patches, index)], 1)
    return inputs.joined(joined, fp32=False), fused(inputs, index)


def _features(inputs: ReducerInput) -> gs.Tensor:
    """[B, T, D]: what cosines are taken of."""
    if inputs.parameters["metric"] != "joined":
        return metric(inputs)
    keys = inputs.builder.transpose(inputs.attention.head_keys(), [0, 2, 1, 3])
    return inputs.of_patches(inputs.builder.reshape(keys, [0, 0, -1]))


def _problem(ask: Ask) -> str:
    return problem(ask) or sorts(ask.keep - 1, min(ask.parameters["neighbours"], ask.count))


REDUCER = Reducer(
    "neighbours",
    neighbours,
    {
        "neighbours": Parameter(int, 32, "tokens that each one takes in", least=1),
        "metric": Parameter(
            str,
            "joined",
            "what cosines are taken of; joined: all heads' keys",
            ("joined", "keys", "x"),
        ),
    },
    traits=frozenset({"fuse"}),
    problem=_problem,
)
