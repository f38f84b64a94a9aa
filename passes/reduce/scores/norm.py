"""`norm`: length of the token itself, of its key or of its value."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.scores.base import Score, ScoreInput


def norm(inputs: ScoreInput) -> gs.Tensor:
    """score_j = ‖f_j‖_p for patches j: [B, T]; f = x, the stream, or k or v, all heads joined.

    x needs no attention at all. DART's pivots are the largest ‖x_j‖₁.
    """
    kind, of = f"L{inputs.parameters['p']}", inputs.parameters["of"]
    if of == "x":
        return inputs.of_patches(inputs.builder.reduce(kind, inputs.x, [2]))
    heads = inputs.attention.head_keys() if of == "k" else inputs.attention.values()
    return inputs.of_patches(inputs.builder.reduce(kind, heads, [1, 3]))


SCORE = Score(
    "norm",
    norm,
    {"of": Parameter(str, "x", "f", ("x", "k", "v")), "p": Parameter(int, 2, "which norm", (1, 2))},
    attention=lambda p: bool(p["of"] != "x"),
)
