"""`norm`: length of the token itself; needs no attention at all (METHODS 2.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from tcompile.passes.reduce.scores import ScoreInput


def norm(given: ScoreInput) -> gs.Tensor:
    """score_j = ‖x_j‖₂ over the channels of the stream, for patches j: [B, T]."""
    length = given.b.reduce("L2", given.x, [2])
    return given.b.slice(length, 1, given.prefix, given.prefix + given.count)
