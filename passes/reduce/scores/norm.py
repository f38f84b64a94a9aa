"""`norm`: length of the token itself; needs no attention at all (METHODS 2.1)."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.passes.reduce.scores.base import Score, ScoreInput


def norm(given: ScoreInput) -> gs.Tensor:
    """score_j = ‖x_j‖₂ over the channels of the stream, for patches j: [B, T]."""
    return given.of_patches(given.b.reduce("L2", given.x, [2]))


SCORE = Score("norm", norm, attention=False)
