"""`energy`: how alone a token is among the others (PiToMe)."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.scores.base import Score, ScoreInput
from tcompile.passes.reduce.scores.common import metric, reads_keys


def energy(inputs: ScoreInput) -> gs.Tensor:
    """score_i = −E_i, E_i = mean_j f(cos(m_i, m_j)) over patches j, i itself included: [B, T].

    m = mean_h K or x. elu, as in the released code: f(c) = ELU_α(c − margin); paper: f(c) = c where
    c ≥ margin, else α·(e^(c−margin) − 1). The two differ by the margin above it, which can change
    ranks (PiToMe). Costs 2·T²·d operations; reads K or x only.
    """
    b, p = inputs.builder, inputs.parameters
    margin, alpha = b.const([p["margin"]], np.float32), float(p["alpha"])
    unit_rows = b.unit(metric(inputs))
    cosine = b.op("MatMul", unit_rows, b.transpose(unit_rows, [0, 2, 1]))
    beyond = b.op("Sub", cosine, margin)
    each = b.op("Elu", beyond, alpha=alpha)
    if p["form"] == "paper":
        above = b.op("GreaterOrEqual", cosine, margin, dtype=np.bool_)
        each = b.op("Where", above, cosine, each)
    return b.op("Neg", b.reduce("Mean", each, [2]))


SCORE = Score(
    "energy",
    energy,
    {
        "margin": Parameter(float, 0.75, "cosine from which tokens count as alike"),
        "alpha": Parameter(float, 1.0, "weight of those below", least=0),
        "form": Parameter(str, "elu", "released code or paper", ("elu", "paper")),
        "metric": Parameter(str, "keys", "m", ("keys", "x")),
    },
    attention=reads_keys,
)
