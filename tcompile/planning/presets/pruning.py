"""Presets that drop tokens inside the encoder, or fuse those that leave into one."""

from __future__ import annotations

from tcompile.planning.parameters import Parameter
from tcompile.planning.presets.base import Preset
from tcompile.planning.presets.common import CLS, TOPK, count, rate
from tcompile.planning.schedule import Spec
from tcompile.planning.schedulers import single, stages

TOPK_BASELINE = Preset(
    name="topk",
    family="prune",
    summary="keep the tokens that matter most, drop the rest, once",
    formula="score_j = mean_h softmax(q_cls·K^T/sqrt d)[j]; without CLS, the mean over "
    "ceil(sqrt T) evenly strided patch queries; keep the K best in their order",
    reference="Haurum et al., Which Tokens to Use?, ICCVW 2023 (top-k baseline)",
    scheduler=single(),
    score=CLS,
    reducer=TOPK,
    parameters={
        "block": count("after whose attention tokens leave; default the first legal from L//4 on"),
        "site": Parameter(str, "attn", "attn (before the MLP), block (after it) or output",
                          ("attn", "block", "output")),
    },
)  # fmt: skip

EVIT = Preset(
    name="evit",
    family="prune",
    summary="keep the most attended tokens, fuse the rest into one, at three depths",
    formula="c_j = mean_h A[h,cls,j]; keep K = ceil(rate·T) per stage, then one token sum_dropped "
    "c_j x_j (not renormalised)",
    reference="Liang et al., Not All Patches are What You Need, ICLR 2022",
    scheduler=stages(fused=1),
    score=CLS,
    reducer=Spec("fuse"),
    parameters={"rate": rate("0.5 to 0.9")},
    budget=("rate",),
    published="rate=0.7: 197, 140, 100, 72 tokens of DeiT-S",
)

PRUNING: tuple[Preset, ...] = (TOPK_BASELINE, EVIT)
