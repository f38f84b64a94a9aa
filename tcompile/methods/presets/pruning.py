"""Presets that drop tokens inside the encoder, or fuse those that leave into one."""

from __future__ import annotations

from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Spec
from tcompile.methods.presets.base import Preset
from tcompile.methods.presets.common import CLS, TOPK, count, part, rate
from tcompile.methods.schedulers import constant, ramp, single, stages

TOPK_BASELINE = Preset(
    name="topk",
    family="prune",
    summary="keep the tokens that matter most, drop the rest, once",
    formula="score_j = mean_h softmax(q_cls·K^T/sqrt d)[j]; keep the K best in their order",
    reference="Haurum et al., Which Tokens to Use? Investigating Token Reduction in Vision "
    "Transformers, ICCVW 2023 (top-k baseline)",
    scheduler=single(),
    score=CLS,
    reducer=TOPK,
    parameters={
        "block": count("after whose attention tokens leave; default the first legal from L//4 on"),
        "site": Parameter(
            str,
            "attn",
            "attn (before the MLP), block (after it) or output",
            ("attn", "block", "output"),
        ),
    },
    note="without CLS the score is the mean over ceil(sqrt T) evenly strided patch queries",
)

EVIT = Preset(
    name="evit",
    family="prune",
    summary="keep the most attended tokens, fuse the rest into one, at three depths",
    formula="c_j = mean_h A[h,cls,j]; keep K = ceil(rate·T) per stage, then one token "
    "sum_dropped c_j x_j (not renormalised)",
    reference="Liang et al., Not All Patches are What You Need: Expediting Vision Transformers "
    "via Token Reorganizations, ICLR 2022",
    scheduler=stages(fused=1),
    score=CLS,
    reducer=Spec("fuse"),
    parameters={"rate": rate("0.5 to 0.9")},
    budget=("rate",),
    published="rate=0.7: 197, 140, 100, 72 tokens of DeiT-S",
)

POMT = Preset(
    name="pomt",
    family="prune",
    summary="drop once, early, by attention received and value mass; the mean of the rest stays",
    formula="a_j = sum_{q in patches} max_h A[h,q,j]; m = softmax over all N tokens of "
    "sum_d max_h v[h,j,d]; score = a/max(a) + m; keep K − 1, then the plain mean of the others",
    reference="Eliopoulos et al., Pruning One More Token is Enough: Leveraging Latency-Workload "
    "Non-Linearities for Vision Transformers on the Edge, WACV 2025",
    scheduler=single(least=2),
    score=Spec(
        "sum",
        {
            "terms": [
                part(Spec("colsum", {"queries": "patches", "agg": "max"}), weight=1.0, norm="max"),
                part(Spec("value_mass"), weight=1.0, norm="none"),
            ]
        },
    ),
    reducer=Spec("fuse", {"weights": "mean"}),
    parameters={"r": count("tokens fewer than before (paper: 56 of 197, DeiT-S on AGX Orin)")},
    budget=("r",),
    published="r=56 in block 3 of 12",
    note="as many tokens leave as were planned: the released code profiles n and deploys n + 2; "
    "a is divided by the maximum of the image, not of the batch",
)

ATS = Preset(
    name="ats",
    family="prune",
    summary="keep what CLS attends to, weighed by the length of the values",
    formula="score_j = sum_h A[h,cls,j] · ‖v_j‖_2, v over all heads; keep the K best",
    reference="Fayyaz et al., Adaptive Token Sampling for Efficient Vision Transformers, ECCV 2022",
    scheduler=stages(),
    score=Spec("cls", {"agg": "sum", "value": "l2"}),
    reducer=TOPK,
    parameters={"rate": rate()},
    budget=("rate",),
    note="the K best in place of inverse-transform sampling, whose count depends on the image",
)

AS_VIT = Preset(
    name="as-vit",
    family="prune",
    summary="keep what CLS attends to, heads weighed by the context they carry",
    formula="score_j = sum_h A[h,cls,j] · ‖o_{h,j}‖ / sum_h' ‖o_{h',j}‖, of the block before",
    reference="Liu et al., Adaptive Sparse ViT: Towards Learnable Adaptive Token Pruning by Fully "
    "Exploiting Self-Attention, IJCAI 2023",
    scheduler=stages("block"),
    score=Spec("cls", {"agg": "sum", "weight": "context"}),
    reducer=TOPK,
    parameters={"rate": rate()},
    budget=("rate",),
    published="before blocks 4, 7, 10 of 12",
    note="the K best in place of a trained threshold",
)

SPATTEN = Preset(
    name="spatten",
    family="prune",
    summary="drop what received the least attention over all blocks so far, a few in each",
    formula="score_j = sum over blocks so far, heads and queries of A[h,q,j]; keep the K best",
    reference="Wang et al., SpAtten: Efficient Sparse Attention Architecture with Cascade Token "
    "and Head Pruning, HPCA 2021",
    scheduler=ramp(),
    score=Spec("colsum", {"queries": "all", "agg": "sum", "cumulative": True}),
    reducer=TOPK,
    note="every block computes Q·K^T a second time",
)

GTP = Preset(
    name="gtp",
    family="prune",
    summary="drop tokens in every block after spreading them over their neighbours",
    formula="score_j = max_h A[h,j,j] · max_h sum_q A[h,q,j]; x_k += alpha · Â_kp x_p for the "
    "p that leave, Â = D^-1/2 G D^-1/2, G = 8 neighbours in the grid and the 8 most similar",
    reference="Xu et al., GTP-ViT: Efficient Vision Transformers via Graph-based Token "
    "Propagation, WACV 2024",
    scheduler=constant("p"),
    score=Spec("colsum", {"queries": "all", "agg": "max", "diagonal": True}),
    reducer=lambda step: Spec("propagate", {"alpha": step.values["alpha"]}),
    parameters={
        "p": count("tokens that leave each block (paper: 1 to 14 for DeiT-B)"),
        "alpha": Parameter(float, 0.2, "how much of them is spread", least=0.0, most=1.0),
    },
    budget=("p",),
    needs=("grid",),
    published="DeiT-B: p=1 81.93 %, p=4 81.76 %, p=8 81.46 %, p=12 80.81 %, p=14 80.11 %",
    note="every block computes Q·K^T a second time; attention is not made sparse",
)

PRUNING: tuple[Preset, ...] = (TOPK_BASELINE, EVIT, POMT, ATS, AS_VIT, SPATTEN, GTP)
