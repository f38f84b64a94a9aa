"""`dup`: how unlike a set of reference tokens a token is (DART, ALGM, TNT, DyCoke)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.scores.base import Score, ScoreInput
from tcompile.passes.reduce.scores.colsum import strided
from tcompile.passes.reduce.scores.common import ALWAYS, metric, reads_keys, whole_grid, windows


def dup(inputs: ScoreInput) -> gs.Tensor:
    """score_j = −agg_{r∈R} cos(m_j, m_r) for patches j: [B, T]; agg max or mean, m = x or mean_h K.

    * pivots: R = the `count` tokens of largest ‖x‖_p (DART).
    * strided: R = `count` tokens at floor((i+½)·T/count) (TNT's random set, fixed).
    * window: R = the other tokens of j's side × side window (ALGM); alone at the edge: 1.
    * frame: in groups of four frames the token at the same place in the frame before (1 by 0, 3 by
      2) or two before (2 by 0) (DyCoke's temporal merge).

    Pivots, strided references and the first frame of each group score 2, more than any cosine, so
    that they stay, as published: the others would have nothing to stand for them. Reads no
    attention, so that it stays fused; window and frame need the grid as it was.
    """
    kind = inputs.parameters["reference"]
    if kind == "window":
        return _in_windows(inputs)
    return _between_frames(inputs) if kind == "frame" else _to_few(inputs)


def _agg(inputs: ScoreInput) -> str:
    return "Max" if inputs.parameters["agg"] == "max" else "Mean"


def _to_few(inputs: ScoreInput) -> gs.Tensor:
    b, p, of = inputs.builder, inputs.parameters, inputs.builder.unit(metric(inputs))
    if p["reference"] == "strided":
        places = np.asarray(strided(inputs.count, p["count"]))
        few = b.op("Gather", of, b.const(places), axis=1)
        own = np.isin(np.arange(inputs.count), places)[None]
        chosen: gs.Tensor = b.const(own, np.bool_)
    else:
        length = b.reduce(f"L{p['p']}", inputs.of_patches(inputs.x), [2])
        index = b.call("TcTopKTokens", length, dtypes=[np.int64], k=min(p["count"], inputs.count))[
            0
        ]
        few = b.call("TcGatherTokens", of, index, dtypes=[np.float32])[0]
        all_places = b.const(np.arange(inputs.count)[None, None])
        same = b.op("Equal", b.unsqueeze(index, 2), all_places, dtype=np.bool_)
        chosen = b.op(
            "Greater",
            b.reduce("Sum", b.cast(same, np.float32), [1]),
            b.const([0], np.float32),
            dtype=np.bool_,
        )
    cosine = b.op("MatMul", of, b.transpose(few, [0, 2, 1]))
    score = b.op("Neg", b.reduce(_agg(inputs), cosine, [2]))
    return b.op("Where", chosen, b.const([ALWAYS], np.float32), score)


def _in_windows(inputs: ScoreInput) -> gs.Tensor:
    b, grid = inputs.builder, whole_grid(inputs, "dup", inputs.count)
    table = windows(grid, inputs.parameters["side"])
    many, members = table.shape
    each = b.op("Gather", b.unit(metric(inputs)), b.const(np.maximum(table, 0)), axis=1)
    cosine = b.op("MatMul", each, b.transpose(each, [0, 1, 3, 2]))
    there = table >= 0
    others = there[:, None, :] & there[:, :, None] & ~np.eye(members, dtype=bool)
    if inputs.parameters["agg"] == "max":
        found = b.op("Where", b.const(others[None], np.bool_), cosine, b.const([-1], np.float32))
        found = b.reduce("Max", found, [3])
    else:
        count = others.sum(-1)
        share = others / np.maximum(count, 1)[..., None]
        found = b.reduce("Sum", b.op("Mul", cosine, b.const(share[None], np.float32)), [3])
        found = b.op("Sub", found, b.const((count == 0)[None], np.float32))
    flat = b.reshape(b.op("Neg", found), [0, many * members])
    place = np.argsort(table.reshape(-1), kind="stable")[-inputs.count :]
    return b.op("Gather", flat, b.const(place), axis=1)


def _between_frames(inputs: ScoreInput) -> gs.Tensor:
    b, (t, h, w) = inputs.builder, whole_grid(inputs, "dup", inputs.count)
    of, frame, place = b.unit(metric(inputs)), np.arange(t), np.arange(h * w)
    before = frame - np.array([0, 1, 2, 1])[frame % 4]
    at = (before[:, None] * (h * w) + place).reshape(-1)
    cosine = b.reduce("Sum", b.op("Mul", of, b.op("Gather", of, b.const(at), axis=1)), [2])
    first = np.repeat(frame % 4 == 0, h * w)[None]
    return b.op(
        "Where", b.const(first, np.bool_), b.const([ALWAYS], np.float32), b.op("Neg", cosine)
    )


def _needs(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    needs = {"window": ("grid",), "frame": ("frames",)}
    return needs.get(parameters["reference"], ())


SCORE = Score(
    "dup",
    dup,
    {
        "reference": Parameter(str, "pivots", "R", ("pivots", "window", "strided", "frame")),
        "count": Parameter(int, 4, "how many pivots or strided tokens", least=1, most=3840),
        "p": Parameter(int, 1, "norm that finds the pivots", (1, 2)),
        "side": Parameter(int, 2, "of a window", least=2, most=16),
        "agg": Parameter(str, "max", "over R", ("max", "mean")),
        "metric": Parameter(str, "x", "m", ("keys", "x")),
    },
    attention=reads_keys,
    needs=_needs,
)
