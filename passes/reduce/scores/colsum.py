"""`colsum`: attention that each patch receives (POMT, GTP-ViT, FoPru, SpAtten)."""

from __future__ import annotations

from math import isqrt

import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.scores.base import Score, ScoreInput
from tcompile.passes.reduce.scores.carried import over
from tcompile.passes.reduce.scores.common import AGGREGATIONS


def colsum(inputs: ScoreInput) -> gs.Tensor:
    """score_j = Σ_{q∈Q} agg_h A[h,q,j] for patches j: [B, T]; A over all keys.

    * `heads=after`: agg_h Σ_{q∈Q} A[h,q,j] (FitPrune's max); mean and sum do not care.
    * `queries`: all N; the T patches (POMT: max_h before the sum); strided: m = ⌈√T⌉ patches at
      floor((i+½)·T/m), which costs m/N of Q·Kᵀ.
    * `diagonal`: agg_h A[h,j,j] · agg_h Σ_{q∈Q} A[h,q,j] (GTP, max).
    * `cumulative`: summed over the blocks so far, each token keeping its own (SpAtten).

    All and patches compute Q·Kᵀ a second time beside the attention, 2·h·N²·d operations and N² of
    memory: the attention itself is not read and stays fused. mean and sum over heads rank alike.
    """
    if not inputs.parameters["cumulative"]:
        return _one(inputs)
    b = inputs.builder
    return over(inputs, inputs.past, _one, lambda old, new: b.op("Add", old, new))


def strided(count: int, m: int | None = None) -> list[int]:
    """floor((i+½)·T/m) for i < m, m = ⌈√T⌉ if not inputs."""
    m = min(m or isqrt(count - 1) + 1, count)
    return [((2 * i + 1) * count) // (2 * m) for i in range(m)]


def _one(inputs: ScoreInput) -> gs.Tensor:
    b, p = inputs.builder, inputs.parameters
    agg, which = AGGREGATIONS[p["agg"]], p["queries"]
    if p["diagonal"] and which == "strided":
        raise UsageError(
            "diagonal=true needs the row of every patch: queries=all or patches",
            where="schedule, score 'colsum'",
        )
    positions = None
    if which != "all":
        places = strided(inputs.count, p["m"]) if which == "strided" else range(inputs.count)
        positions = [inputs.prefix + i for i in places]
    rows = inputs.of_patches(inputs.attention.rows(positions), 3)
    if not p["diagonal"] and p["heads"] == "before":
        return b.reduce("Sum", b.reduce(agg, rows, [1]), [1])
    received = b.reduce(agg, b.reduce("Sum", rows, [2]), [1])
    if not p["diagonal"]:
        return received
    own = inputs.of_patches(rows, 2) if positions is None else rows
    count = inputs.count
    flat = b.reshape(own, [0, 0, count * count])
    diagonal = b.op("Slice", flat, [0], [count * count], [2], [count + 1])
    return b.op("Mul", b.reduce(agg, diagonal, [1]), received)


SCORE = Score(
    "colsum",
    colsum,
    {
        "queries": Parameter(str, "patches", "Q", ("all", "patches", "strided")),
        "m": Parameter(int, None, "how many strided queries; default ⌈√T⌉", least=1),
        "agg": Parameter(str, "mean", "over heads", ("mean", "max", "sum")),
        "heads": Parameter(str, "before", "aggregated before or after Σ_q", ("before", "after")),
        "diagonal": Parameter(bool, False, "times what a patch pays itself"),
        "cumulative": Parameter(bool, False, "summed over the blocks so far"),
    },
)
