"""`cls`: attention that the CLS token pays to each patch (EViT, DiffRate, FasterVLM)."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.passes.reduce.scores.base import Score, ScoreInput


def cls(given: ScoreInput) -> gs.Tensor:
    """score_j = mean_h softmax(q_cls·Kᵀ/√d)[h, j] for patches j: [B, T].

    The softmax runs over all keys, prefix included, and is not renormalised (METHODS 4.11). Only
    that row is recomputed: O(h·N·d).
    """
    b = given.b
    row = given.core.rows([given.core.position(given.cls)])
    mean = b.squeeze(b.reduce("Mean", row, [1]), 1)
    return given.of_patches(mean)


SCORE = Score("cls", cls, needs=lambda _: ("cls",))
