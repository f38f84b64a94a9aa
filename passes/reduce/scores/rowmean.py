"""`rowmean`: how much a patch asks of all others (FiCoCo)."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.passes.reduce.scores.base import Score, ScoreInput


def rowmean(inputs: ScoreInput) -> gs.Tensor:
    """score_i = mean_h mean_j q_hi·k_hj·scale over patches j: [B, T] (FiCoCo-V).

    Raw logits, without masks and biases: of probabilities the mean would be (1 − A[i, cls])/T.
    Since they are linear in K, they are q_i times the mean key: O(h·N·d), and the attention stays
    fused.
    """
    b, core = inputs.builder, inputs.attention
    keys = b.reduce("Mean", inputs.of_patches(core.head_keys(), 2), [2], 1)
    queries = inputs.of_patches(core.queries(), 2)
    logits = b.op("MatMul", queries, b.transpose(keys, [0, 1, 3, 2]))
    mean = b.squeeze(b.reduce("Mean", logits, [1]), 2)
    return b.op("Mul", mean, b.const([core.raw_scale()], np.float32))


SCORE = Score("rowmean", rowmean)
