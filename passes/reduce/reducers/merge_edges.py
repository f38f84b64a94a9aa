"""How alike two tokens are, for `merge`: cosine, and what methods add to it or multiply it by."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.reducers.base import ReducerInput
from tcompile.passes.reduce.reducers.common import TINY
from tcompile.passes.reduce.reducers.merge_split import Side

#: MCTF's temperatures of information and size, taken as roots; that of similarity is 1.
TAU_INFORMATION, TAU_SIZE = 20, 40


def metric(given: ReducerInput) -> gs.Tensor:
    """[B, T, D]: keys averaged over heads, or the stream."""
    if given.parameters["metric"] == "keys":
        return given.of_patches(given.core.keys())
    return given.of_patches(given.stream, fp32=False)


def edges(given: ReducerInput, features: gs.Tensor, a: Side, other: Side) -> gs.Tensor:
    """[B, |A|, |B|] fp32: cos(f_a, f_b), then

    * MCTF: ((cos + 1)/2) · (â_a â_b)^(1/20) · (ŝ_a ŝ_b)^(1/40), â = 1/score and ŝ = 1/size, both
      divided by their largest;
    * Turbo: minus penalty · score_a.
    """
    b, parameters = given.b, given.parameters
    each = b.unit(features)
    found = b.op("MatMul", a.rows(b, each), b.transpose(other.rows(b, each), [0, 2, 1]))
    if parameters["criteria"] == "mctf":
        half = b.op("Mul", b.op("Add", found, _number(b, 1)), _number(b, 0.5))
        assert given.score is not None
        found = _times(b, half, given.score, 1 / TAU_INFORMATION, a, other)
        if given.stage.size is not None:
            found = _times(b, found, given.stage.size, 1 / TAU_SIZE, a, other)
    if parameters["penalty"]:
        assert given.score is not None
        scored = b.unsqueeze(a.values(b, given.score), 2)
        found = b.op("Sub", found, b.op("Mul", scored, _number(b, parameters["penalty"])))
    return found


def _times(
    b: Builder, found: gs.Tensor, values: gs.Tensor, power: float, a: Side, other: Side
) -> gs.Tensor:
    """found · (v_a v_b)^power with v = (1/value)/max(1/value) = min(value)/value."""
    safe = b.op("Max", values, _number(b, TINY))
    ratio = b.op("Div", b.reduce("Min", safe, [1], 1), safe)
    rooted = b.op("Pow", ratio, _number(b, power))
    row, column = b.unsqueeze(a.values(b, rooted), 2), b.unsqueeze(other.values(b, rooted), 1)
    return b.op("Mul", b.op("Mul", found, row), column)


def _number(b: Builder, value: float) -> gs.Tensor:
    return b.const([value], np.float32)
