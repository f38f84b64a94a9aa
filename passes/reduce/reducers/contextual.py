"""R4: dominant tokens as they are, and a few that sum up the rest (VisionZip).

Yang et al., VisionZip: Longer is Better but Not Necessary in Vision Language Models (CVPR 2025).
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.reducers.assign import closest
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import (
    choose,
    metric,
    numbers,
    onehot,
    others,
    placed,
    rows,
    sorts,
    staying,
)
from tcompile.passes.reduce.token_state import TokenState


def contextual(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """x' = [prefix | dominant | contextual | suffix], each ascending; fp32 inside.

    dominant: the K − c best. Of the M others, ascending, every step-th is a target, c of them,
    step = max(1, M // c); each of the rest goes to its argmax cos, by the keys' mean or the stream.
    A contextual token is x_t + Σ x_j / max(1, n_t): a sum of target and mean, about twice as long
    as either, as published. No token counts for more than before.
    """
    b, before, count = inputs.builder, inputs.state, inputs.parameters["contextual"]
    dominant, left = inputs.keep - count, before.count - inputs.keep + count
    best = choose(inputs, dominant)
    rest = others(b, best, before.count, left)
    targets, gone = (_at(inputs, rest, at) for at in _split(left, count))
    kept = b.concat([best, targets], 1)
    patches = inputs.of_patches(inputs.x, fp32=False)
    summed = rows(b, patches, targets)
    step = placed(b, before.count, (kept, numbers(b, kept, inputs.keep)))
    if left > count:
        _, slot = closest(inputs, metric(inputs), gone, targets)
        into = onehot(b, slot, count)
        many = b.op("Max", b.reduce("Sum", into, [2], 1), b.const([1], np.float32))
        mean = b.op("Div", b.op("MatMul", into, rows(b, patches, gone)), many)
        summed = b.op("Add", summed, mean)
        place = b.op("Add", slot, [dominant], dtype=np.int64)
        step = b.op("ScatterElements", step, gone, place, dtype=np.int64, axis=1)
    joined = b.concat([rows(b, patches, best, fp32=False), summed], 1, fp32=False)
    return inputs.joined(joined, fp32=False), staying(inputs, kept, step)


def _split(left: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of the targets among the tokens left, and those of the others."""
    targets = np.arange(0, left, max(1, left // count))[:count]
    return targets, np.setdiff1d(np.arange(left), targets)


def _at(inputs: ReducerInput, index: gs.Tensor, places: np.ndarray) -> gs.Tensor:
    """[B, n]: those of index [B, m] at the same places for each image."""
    return inputs.builder.op("Gather", index, inputs.builder.const(places), dtype=np.int64, axis=1)


def _problem(ask: Ask) -> str:
    count = ask.parameters["contextual"]
    if ask.keep <= count:
        return (
            f"{ask.keep} tokens leave no dominant one beside {count} contextual ones: "
            f"contextual={ask.keep - 1} or less, or keep {count + 1} or more"
        )
    return sorts(ask.keep, ask.count - ask.keep + count)


REDUCER = Reducer(
    "contextual",
    contextual,
    {
        "contextual": Parameter(int, 10, "tokens that sum up those that are not kept", least=1),
        "metric": Parameter(str, "keys", "what cosines are taken of", ("keys", "x")),
    },
    segments=True,
    problem=_problem,
)
