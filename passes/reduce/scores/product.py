"""`product`: scores raised to powers and multiplied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.scores.base import Score, ScoreInput
from tcompile.passes.reduce.scores.common import TINY, Term, scored, terms

#: e^±80 are the last powers of e that fp32 holds with room to spare.
_MOST = 80.0


def multiply(inputs: ScoreInput) -> gs.Tensor:
    """score = Π_t max(score_t, 1e-12)^power_t: [B, T], between e^−80 and e^80.

    Written as exp(Σ_t power_t · ln score_t), so that no power of a small score overflows.
    """
    b, total = inputs.builder, None
    for term in _terms(inputs.parameters):
        safe = b.op("Max", scored(inputs, term.spec), b.const([TINY], np.float32))
        power = b.op("Mul", b.op("Log", safe), b.const([term.number], np.float32))
        total = power if total is None else b.op("Add", total, power)
    assert total is not None
    low, high = b.const(-_MOST, np.float32), b.const(_MOST, np.float32)
    return b.op("Exp", b.op("Clip", total, low, high))


def _terms(parameters: Mapping[str, Any]) -> list[Term]:
    return terms(parameters, "product", "power")


SCORE = Score(
    "product",
    multiply,
    {"terms": Parameter(list, None, "each {score, power: 1}")},
    attention=False,
    parts=lambda p: [term.spec for term in _terms(p)],
)
