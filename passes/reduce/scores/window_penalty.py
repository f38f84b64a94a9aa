"""`window_penalty`: what leaves is spread over the image (FiCoCo)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Spec
from tcompile.passes.reduce.scores.base import Score, ScoreInput
from tcompile.passes.reduce.scores.carried import at_site
from tcompile.passes.reduce.scores.common import part, scored, whole_grid, windows

#: Above any score: no token is there.
_NONE = 1e30


def window_penalty(inputs: ScoreInput) -> gs.Tensor:
    """The score, but the least of each side × side window of the grid, times `factor` where it is
    negative and divided by it where it is positive: [B, T] (FiCoCo-V).

    Windows are those of the dense model; one that has lost a token is penalised no more, so that
    what leaves spreads over the image. Ties: the first in raster order.
    """
    b, p = inputs.builder, inputs.parameters
    score = scored(inputs, _part(p))
    state = at_site(inputs)
    if not state.positioned:
        raise UsageError(
            "score 'window_penalty' needs a place in the grid for every token",
            where="schedule",
            hint="use a reducer that fuses none",
        )
    total = prod(inputs.dense_grid)
    table = windows(whole_grid(inputs, "window_penalty", inputs.dense_count), p["side"])
    whole = score
    if state.index is not None:
        absent = b.op("Mul", b.slice(score, 1, 0, 1), b.const([0], np.float32))
        absent = b.op("Add", absent, b.const(np.full((1, total), _NONE), np.float32))
        whole = b.op("ScatterElements", absent, state.index, score, axis=1)
    # [B, W, side²]; beyond the edge of the grid: no token.
    each = b.op("Gather", whole, b.const(np.maximum(table, 0)), axis=1)
    there = b.const((table >= 0)[None], np.bool_)
    valued = b.op("Where", there, each, b.const([_NONE], np.float32))
    least = b.op("ArgMin", valued, dtype=np.int64, axis=2, keepdims=0)
    most = b.reduce("Max", b.op("Where", there, each, b.const([-_NONE], np.float32)), [2])
    intact = b.op("Less", most, b.const([_NONE / 2], np.float32), dtype=np.bool_)
    # A window that lost a token points at a member that it does not have.
    least = b.op("Where", intact, least, b.const([table.shape[1]]), dtype=np.int64)
    order = np.argsort(table.reshape(-1), kind="stable")[-total:]
    window, member = order // table.shape[1], order % table.shape[1]
    chosen = b.op("Gather", least, b.const(window), dtype=np.int64, axis=1)
    worst = b.op("Equal", chosen, b.const(member[None]), dtype=np.bool_)
    if state.index is not None:
        flag = b.op("GatherElements", b.cast(worst, np.float32), state.index, axis=1)
        worst = b.op("Greater", flag, b.const([0.5], np.float32), dtype=np.bool_)
    negative = b.op("Less", score, b.const([0], np.float32), dtype=np.bool_)
    factor = float(p["factor"])
    scale = b.op(
        "Where", negative, b.const([factor], np.float32), b.const([1 / factor], np.float32)
    )
    return b.op("Where", worst, b.op("Mul", score, scale), score)


def _part(parameters: Mapping[str, Any]) -> Spec:
    return part(parameters["score"], "window_penalty")


SCORE = Score(
    "window_penalty",
    window_penalty,
    {
        "score": Parameter(dict, None, "the score that is changed"),
        "side": Parameter(int, 2, "of a window", least=2, most=16),
        "factor": Parameter(float, 2.0, "how much less the least one counts", least=1, most=1e6),
    },
    attention=False,
    needs=lambda _: ("grid",),
    parts=lambda p: (_part(p),),
)
