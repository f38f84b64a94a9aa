"""`value_mass`: the second term of POMT's score."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.passes.reduce.scores.base import Score, ScoreInput


def value_mass(inputs: ScoreInput) -> gs.Tensor:
    """score_j = softmax over all N tokens of (Σ_d max_h v[h, j, d]), the patches of it: [B, T].

    The softmax sees the prefix too. A signed sum, not a norm; it can saturate to one token.
    """
    b = inputs.builder
    mass = b.reduce("Sum", b.reduce("Max", inputs.attention.values(), [1]), [2])
    return inputs.of_patches(b.op("Softmax", mass, axis=-1))


SCORE = Score("value_mass", value_mass)
