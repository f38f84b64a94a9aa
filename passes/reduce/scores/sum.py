"""`sum`: scores weighed and added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.scores.base import Score, ScoreInput
from tcompile.passes.reduce.scores.common import Term, divided, scored, terms

NORMS = ("none", "max", "minmax", "l2", "softmax")


def add(inputs: ScoreInput) -> gs.Tensor:
    """score = Σ_t weight_t · norm_t(score_t): [B, T], each normalised over its image's patches.

    max: s / max_j |s_j|; minmax: (s − min)/(max − min); l2: s/‖s‖₂; softmax. A constant score
    becomes zeros by minmax, and zeros stay zeros. POMT = colsum (max over heads) by max +
    value_mass; FiCoCo = .35·cls (pre) by l2 − .65·rowmean by l2.
    """
    b, total = inputs.builder, None
    for term in _terms(inputs.parameters):
        score = _normalised(b, scored(inputs, term.spec), term.norm)
        if term.number != 1:
            score = b.op("Mul", score, b.const([term.number], np.float32))
        total = score if total is None else b.op("Add", total, score)
    assert total is not None
    return total


def _normalised(b: Builder, score: gs.Tensor, norm: str) -> gs.Tensor:
    if norm == "none":
        return score
    if norm == "softmax":
        return b.op("Softmax", score, axis=-1)
    if norm == "max":
        return divided(b, score, b.reduce("Max", b.op("Abs", score), [1], 1))
    if norm == "l2":
        return divided(b, score, b.reduce("L2", score, [1], 1))
    least = b.reduce("Min", score, [1], 1)
    above = b.op("Sub", score, least)
    return divided(b, above, b.reduce("Max", above, [1], 1))


def _terms(parameters: Mapping[str, Any]) -> list[Term]:
    return terms(parameters, "sum", "weight", NORMS)


SCORE = Score(
    "sum",
    add,
    {"terms": Parameter(list, None, "each {score, weight: 1, norm: none}")},
    attention=False,
    parts=lambda p: [term.spec for term in _terms(p)],
)
