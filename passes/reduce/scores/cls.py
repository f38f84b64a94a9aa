"""`cls`: attention that the CLS token pays to each patch (EViT, DiffRate, FasterVLM)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from tcompile.passes.reduce.scores import ScoreInput


def cls(given: ScoreInput) -> gs.Tensor:
    """score_j = mean_h softmax(q_cls·Kᵀ/√d)[h, j] for patches j: [B, T].

    The softmax runs over all keys, prefix included, and is not renormalised (METHODS 4.11). Only
    that row is recomputed: O(h·N·d).
    """
    b = given.b
    row = given.core.rows([given.core.position(given.cls)])
    mean = b.squeeze(b.reduce("Mean", row, [1]), 1)
    return b.slice(mean, 1, given.prefix, given.prefix + given.count)
