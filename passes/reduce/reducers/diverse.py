"""R1: the most important tokens, and of the others those that are least alike (VisPruner).

Zhang et al., Beyond Text-Visual Attention (VisPruner, ICCV 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import (
    ascending,
    choose,
    metric,
    others,
    rows,
    scored,
    sorts,
    staying,
)
from tcompile.passes.reduce.token_state import TokenState

#: More rounds than this make a graph too long.
_ROUNDS = 256


def diverse(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """x' = [prefix | x_S | suffix], ascending; fp32 inside. S = the int(important · K) best by
    score, and what is left of the others after these rounds: of their list, best first, even places
    A and odd places B; the `step` of A (fewer in the last round) with the largest max_{b∈B}
    cos(a, b) leave. The list keeps its order. rounds: that many of equal steps, in place of step.

    For restored outputs a dropped token is represented by the kept one nearest in cosine here.
    """
    b = inputs.builder
    important = _important(inputs.parameters, inputs.keep)
    index = choose(inputs, inputs.keep) if important == inputs.keep else _unlike(inputs, important)
    patches = inputs.of_patches(inputs.x, fp32=False)
    kept = rows(b, patches, index, fp32=False)
    slots = b.const(np.arange(inputs.keep))
    step = b.call("TcNearestTokens", patches, index, slots, dtypes=[np.int64])[0]
    return inputs.joined(kept, fp32=False), staying(inputs, index, step)


def _unlike(inputs: ReducerInput, important: int) -> gs.Tensor:
    """[B, K]: the important ones and those that are left of the others, ascending."""
    b, count = inputs.builder, inputs.state.count
    _, order = b.top_k(scored(inputs), count)
    left: gs.Tensor = b.slice(order, 1, important, None)
    features = rows(b, b.unit(metric(inputs)), left)
    size = count - important
    for r in _drops(inputs.parameters, count, inputs.keep):
        stay = others(b, _alike(b, features, size, r), size, size - r)
        left = b.op("GatherElements", left, stay, dtype=np.int64, axis=1)
        size -= r
        features = rows(b, features, stay)
    if important:
        left = b.concat([b.slice(order, 1, 0, important), left], 1)
    return ascending(b, left, inputs.keep)[0]


def _alike(b: Builder, features: gs.Tensor, size: int, r: int) -> gs.Tensor:
    """[B, r]: the even places of [B, size, D] that are most like an odd one."""
    even, odd = (
        b.op("Slice", features, [i], [size], [1], [2], dtype=features.dtype) for i in (0, 1)
    )
    cosine = b.op("MatMul", even, b.transpose(odd, [0, 2, 1]))
    nearest = b.reduce("Max", cosine, [2])
    _, most = b.top_k(nearest, r)
    return b.op("Mul", most, [2], dtype=np.int64)


def _important(parameters: Mapping[str, Any], keep: int) -> int:
    return int(Fraction(parameters["important"]).limit_denominator(10**6) * keep)


def _drops(parameters: Mapping[str, Any], count: int, keep: int) -> list[int]:
    """Return how many leave in each round."""
    gone, rounds = count - keep, parameters["rounds"]
    most = parameters["step"] if rounds is None else -(-gone // rounds)
    size, found = count - _important(parameters, keep), []
    while gone > 0:
        # No more than there are even places, each with an odd one to be like.
        found.append(min(most, gone, size // 2))
        gone, size = gone - found[-1], size - found[-1]
    return found


def _problem(ask: Ask) -> str:
    if _important(ask.parameters, ask.keep) == ask.keep:
        return sorts(ask.keep)
    rounds = len(_drops(ask.parameters, ask.count, ask.keep))
    if rounds > _ROUNDS:
        return (
            f"{ask.count - ask.keep} tokens leave in {rounds} rounds, more than {_ROUNDS}; "
            "rounds=16 makes the steps larger"
        )
    return sorts(ask.count)


REDUCER = Reducer(
    "diverse",
    diverse,
    {
        "important": Parameter(
            float, 0.5, "share of the tokens kept for their score", least=0.0, most=1.0
        ),
        "step": Parameter(int, 8, "tokens that leave in a round", least=1),
        "rounds": Parameter(int, None, "how many rounds, in place of step", least=1),
        "metric": Parameter(str, "x", "what cosines are taken of", ("keys", "x")),
    },
    problem=_problem,
)
