"""`attn`: attention received from evenly strided patch queries, for encoders without CLS."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.passes.reduce.scores.base import Score, ScoreInput
from tcompile.passes.reduce.scores.colsum import strided


def attn(inputs: ScoreInput) -> gs.Tensor:
    """score_j = mean over heads and m queries i of softmax(q_i·Kᵀ/√d)[h, j]: [B, T].

    m = ⌈√T⌉ patch queries at floor((i+½)·T/m): the strided form of the attention column sum
    (`colsum`), which leaves the attention fused and costs m/N of Q·Kᵀ.
    """
    positions = [inputs.prefix + i for i in strided(inputs.count)]
    mean = inputs.builder.reduce("Mean", inputs.attention.rows(positions), [1, 2])
    return inputs.of_patches(mean)


SCORE = Score("attn", attn)
