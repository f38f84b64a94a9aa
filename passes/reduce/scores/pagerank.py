"""`pagerank`: importance voted on through the attention graph (Zero-TPrune)."""

from __future__ import annotations

from math import sqrt

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.scores.base import Score, ScoreInput
from tcompile.passes.reduce.scores.common import divided


def pagerank(inputs: ScoreInput) -> gs.Tensor:
    """score_i = √(Σ_h η_h s_hi² / Σ_h η_h) for patches i: [B, T] (Zero-TPrune).

    By head, `iterations` times s ← Aᵀ·s over all N tokens (A·1 = 1, so A itself would never move).
    s⁰ is the same for each, or √N times the others' for CLS (`cls_boost`), mean 1; every row of A
    sums to 1, so that the mean stays 1. η_h = 1 where the variance of s_h over the N tokens lies in
    [vmin, vmax], else 0; of all heads where that leaves none.

    Q·Kᵀ is computed a second time beside the attention, 2·h·N²·d operations and N² of memory, and
    2·h·N² in each iteration: the attention itself is not read and stays fused.
    """
    b, p, core = inputs.builder, inputs.parameters, inputs.attention
    attention = core.rows()
    tokens, row = core.tokens, np.ones((1, 1, 1, core.tokens))
    if p["cls_boost"]:
        places = [core.position(place) for place in inputs.cls_positions]
        row[..., places] = sqrt(tokens) / len(places)
    votes: gs.Tensor = b.const(row / row.mean(), np.float32)
    for _ in range(p["iterations"]):
        votes = b.op("MatMul", votes, attention)
    apart = b.op("Sub", votes, b.reduce("Mean", votes, [3], 1))
    variance = b.reduce("Mean", b.op("Mul", apart, apart), [3], 1)
    inside = b.op(
        "And",
        b.op("GreaterOrEqual", variance, b.const([p["vmin"]], np.float32), dtype=np.bool_),
        b.op("LessOrEqual", variance, b.const([p["vmax"]], np.float32), dtype=np.bool_),
        dtype=np.bool_,
    )
    good = b.cast(inside, np.float32)
    count = b.reduce("Sum", good, [1], 1)
    # Where no head is left, 1 − min(count, 1) is 1 for each.
    none = b.op("Sub", b.const([1], np.float32), b.op("Min", count, b.const([1], np.float32)))
    weight = b.op("Add", good, none)
    squares = b.reduce("Sum", b.op("Mul", weight, b.op("Mul", votes, votes)), [1], 1)
    mean = divided(b, squares, b.reduce("Sum", weight, [1], 1))
    return inputs.of_patches(b.squeeze(b.op("Sqrt", mean), 1, 2))


SCORE = Score(
    "pagerank",
    pagerank,
    {
        "iterations": Parameter(int, 5, "votes", least=1, most=64),
        "cls_boost": Parameter(bool, True, "CLS begins with √N times the others' weight"),
        "vmin": Parameter(float, 0.01, "least variance of a head's scores", least=0),
        "vmax": Parameter(float, 0.7, "most", least=0),
    },
    needs=lambda p: ("cls",) if p["cls_boost"] else (),
)
