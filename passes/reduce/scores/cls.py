"""`cls`: attention that the CLS token pays to each patch, and its many modifications."""

from __future__ import annotations

from math import sqrt

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.scores.base import Score, ScoreInput
from tcompile.passes.reduce.scores.carried import over, previous
from tcompile.passes.reduce.scores.common import AGGREGATIONS, divided


def cls(inputs: ScoreInput) -> gs.Tensor:
    """score_j = ν_j · agg_h(ω_hj · a_hj) for patches j: [B, T].

    a_h = softmax(q_cls·Kᵀ/√d)[h], taken over all keys, prefix included, and not renormalised.
    Only that row is recomputed, O(h·N·d), so that the attention stays fused. Where
    the model reads several tokens of a kind together (detection tokens), a_h is their rows' mean.

    * `agg`: mean (EViT, FasterVLM, DiffRate), sum (VisionZip, Evo-ViT), max, rms.
    * `weight=context`: ω_hj = ‖o_hj‖₂ / Σ_h ‖o_hj‖₂, o = A·V by head (AS-ViT).
    * `value`: l2: ν_j = ‖v_j‖₂ over all heads joined (ATS); l1: ‖v_hj‖₁ by head, inside agg (VATP).
    * `softmax=pre`: a = the logits, scaled, masks and biases added (IdleViT, FiCoCo).
    * `heads=joined`: one head of full width, softmax(Σ_h q_h·k_h/√C) (PruMerge): written as the
      logits of all heads summed and divided by √h.
    * `source`: previous: the block before (AS-ViT); ema: g ← (1−τ)·g + τ·c over all blocks so far,
      g = c of the first; tokens that bypassed a block keep their g (Evo-ViT).
    """
    source, tau = inputs.parameters["source"], float(inputs.parameters["tau"])
    if source == "this":
        return _row(inputs)
    if source == "previous":
        return previous(inputs, _row)
    b = inputs.builder

    def ema(old: gs.Tensor, new: gs.Tensor) -> gs.Tensor:
        kept = b.op("Mul", old, b.const([1 - tau], np.float32))
        return b.op("Add", kept, b.op("Mul", new, b.const([tau], np.float32)))

    return over(inputs, inputs.past, _row, ema)


def _row(inputs: ScoreInput) -> gs.Tensor:
    """The score by the attention of `inputs.attention`."""
    b, p = inputs.builder, inputs.parameters
    row = _attention(inputs)
    if p["weight"] == "context":
        length = b.reduce("L2", inputs.attention.context(), [3])
        share = divided(b, length, b.reduce("Sum", length, [1], 1))
        row = b.op("Mul", row, b.unsqueeze(share, 2))
    if p["value"] == "l1":
        # A joined head's values are those of all heads.
        one = p["heads"] == "joined"
        length = b.reduce("L1", inputs.attention.values(), [1, 3] if one else [3])
        row = b.op("Mul", row, b.unsqueeze(length, *((1, 2) if one else (2,))))
    if p["agg"] == "rms":
        mean = b.op("Sqrt", b.reduce("Mean", b.op("Mul", row, row), [1]))
    else:
        mean = b.reduce(AGGREGATIONS[p["agg"]], row, [1])
    mean = b.squeeze(mean, 1)
    if p["value"] == "l2":
        mean = b.op("Mul", mean, b.reduce("L2", inputs.attention.values(), [1, 3]))
    return inputs.of_patches(mean)


def _attention(inputs: ScoreInput) -> gs.Tensor:
    """[B, h, 1, N], h = 1 where heads are joined."""
    b, p, core = inputs.builder, inputs.parameters, inputs.attention
    places = [core.position(place) for place in inputs.cls_positions]
    if p["heads"] == "each":
        return _mean(inputs, core.logits(places) if p["softmax"] == "pre" else core.rows(places))
    if p["weight"] == "context":
        raise UsageError(
            "weight=context weighs heads, and heads=joined has one", where="schedule, score 'cls'"
        )
    whole = b.reduce("Sum", core.logits(places), [1], 1)
    whole = b.op("Mul", whole, b.const([1 / sqrt(core.matched.heads)], np.float32))
    return _mean(inputs, whole if p["softmax"] == "pre" else b.op("Softmax", whole, axis=-1))


def _mean(inputs: ScoreInput, rows: gs.Tensor) -> gs.Tensor:
    """[B, h, 1, N], over the tokens that are read together."""
    return rows if len(inputs.cls_positions) == 1 else inputs.builder.reduce("Mean", rows, [2], 1)


SCORE = Score(
    "cls",
    cls,
    {
        "agg": Parameter(str, "mean", "over heads", ("mean", "sum", "max", "rms")),
        "weight": Parameter(str, "none", "of heads: by the context's length", ("none", "context")),
        "value": Parameter(str, "none", "times the value's length", ("none", "l2", "l1")),
        "softmax": Parameter(str, "post", "probabilities or logits", ("post", "pre")),
        "heads": Parameter(str, "each", "by head, or one of full width", ("each", "joined")),
        "source": Parameter(
            str, "this", "block whose attention it is", ("this", "previous", "ema")
        ),
        "tau": Parameter(float, 0.5, "share of the newest block in the ema", least=0, most=1),
    },
    needs=lambda _: ("cls",),
)
