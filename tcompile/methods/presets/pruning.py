"""Presets that drop tokens inside the encoder, or fuse those that leave into one.

Published scores on attention; scores that are a small trained head, whose weights are yours, in a
file; control baselines, where what stays does not depend on the image; and presets that learn their
counts from images (`--calibration`).
"""

from __future__ import annotations

from fractions import Fraction

from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Spec
from tcompile.methods.context import Step
from tcompile.methods.presets.base import CLS, HEAD, TOPK, Preset, chain, count, head, part, rate
from tcompile.methods.schedulers import (
    around,
    constant,
    fit,
    greedy,
    ramp,
    sigmoid,
    single,
    stages,
    until_last,
)


def _tnt(step: Step) -> Spec:
    leave, similar = step.before - step.keep, step.values["similar"]
    # 25 for being alike after 79 by score, where published.
    alike = int(leave * Fraction(25, 104)) if similar is None else min(similar, leave)
    drop = Spec("merge", {"metric": "x", "combine": "drop", "sizes": False, "prop_attn": False})
    return chain((TOPK, step.before), (TOPK, step.keep + alike), (drop, step.keep))


_HAURUM = (
    "Haurum et al., Which Tokens to Use? Investigating Token Reduction in Vision Transformers, "
    "ICCVW 2023"
)


def _radial(step: Step) -> Spec:
    return Spec("static", {"pattern": "radial", "norm": step.values["norm"]})


_PAID = Spec("cls", {"agg": "max"})
_RECEIVED = Spec("colsum", {"queries": "all", "agg": "max", "heads": "after"})
_SEARCH = (
    "Zhao et al., Accelerating Multimodal Large Language Models by Searching Optimal Vision Token "
    "Reduction, CVPR 2025"
)


def _share(meaning: str) -> Parameter:
    return Parameter(float, None, meaning, least=0.0, most=1.0)


PRUNING: tuple[Preset, ...] = (
    Preset(
        name="topk",
        family="prune",
        auto=True,
        summary="keep the tokens that matter most, drop the rest, once",
        formula="score_j = mean_h softmax(q_cls·K^T/sqrt d)[j]; keep the K best in their order",
        reference="Haurum et al., Which Tokens to Use? Investigating Token Reduction in Vision "
        "Transformers, ICCVW 2023 (top-k baseline)",
        scheduler=single(),
        score=CLS,
        reducer=TOPK,
        parameters={
            "block": count(
                "after whose attention tokens leave; default the first legal from L//4 on"
            ),
            "site": Parameter(
                str,
                "attn",
                "attn (before the MLP), block (after it) or output",
                ("attn", "block", "output"),
            ),
        },
        note="without CLS the score is the mean over ceil(sqrt T) evenly strided patch queries",
    ),
    Preset(
        name="evit",
        family="prune",
        auto=True,
        summary="keep the most attended tokens, fuse the rest into one, at three depths",
        formula="c_j = mean_h A[h,cls,j]; keep K = ceil(rate·T) per stage, then one token "
        "sum_dropped c_j x_j (not renormalised)",
        reference="Liang et al., Not All Patches are What You Need: Expediting Vision "
        "Transformers via Token Reorganizations, ICLR 2022",
        scheduler=stages(fused=1),
        score=CLS,
        reducer=Spec("fuse"),
        parameters={"rate": rate("0.5 to 0.9")},
        budget=("rate",),
        published="rate=0.7: 197, 140, 100, 72 tokens of DeiT-S",
    ),
    Preset(
        name="pomt",
        family="prune",
        auto=True,
        summary="drop once, early, by attention received and value mass; the mean of the rest "
        "stays",
        formula="a_j = sum_{q in patches} max_h A[h,q,j]; m = softmax over all N tokens of sum_d "
        "max_h v[h,j,d]; score = a/max(a) + m; keep K − 1, then the plain mean of the others",
        reference="Eliopoulos et al., Pruning One More Token is Enough: Leveraging "
        "Latency-Workload Non-Linearities for Vision Transformers on the Edge, WACV 2025",
        scheduler=single(least=2),
        score=Spec(
            "sum",
            {
                "terms": [
                    part(
                        Spec("colsum", {"queries": "patches", "agg": "max"}), weight=1.0, norm="max"
                    ),
                    part(Spec("value_mass"), weight=1.0, norm="none"),
                ]
            },
        ),
        reducer=Spec("fuse", {"weights": "mean"}),
        parameters={"r": count("tokens fewer than before (paper: 56 of 197, DeiT-S on AGX Orin)")},
        budget=("r",),
        published="r=56 in block 3 of 12",
        note="as many tokens leave as were planned: the released code profiles n and deploys n + "
        "2; a is divided by the maximum of the image, not of the batch",
    ),
    Preset(
        name="ats",
        family="prune",
        auto=True,
        summary="keep what CLS attends to, weighed by the length of the values",
        formula="score_j = sum_h A[h,cls,j] · ‖v_j‖_2, v over all heads; keep the K best",
        reference="Fayyaz et al., Adaptive Token Sampling for Efficient Vision Transformers, ECCV "
        "2022",
        scheduler=stages(),
        score=Spec("cls", {"agg": "sum", "value": "l2"}),
        reducer=TOPK,
        parameters={"rate": rate()},
        budget=("rate",),
        note="the K best in place of inverse-transform sampling, whose count depends on the image",
    ),
    Preset(
        name="as-vit",
        family="prune",
        auto=True,
        summary="keep what CLS attends to, heads weighed by the context they carry",
        formula="score_j = sum_h A[h,cls,j] · ‖o_{h,j}‖ / sum_h' ‖o_{h',j}‖, of the block before",
        reference="Liu et al., Adaptive Sparse ViT: Towards Learnable Adaptive Token Pruning by "
        "Fully Exploiting Self-Attention, IJCAI 2023",
        scheduler=stages("block"),
        score=Spec("cls", {"agg": "sum", "weight": "context"}),
        reducer=TOPK,
        parameters={"rate": rate()},
        budget=("rate",),
        published="before blocks 4, 7, 10 of 12",
        note="the K best in place of a trained threshold",
    ),
    Preset(
        name="spatten",
        family="prune",
        summary="drop what received the least attention over all blocks so far, a few in each",
        formula="score_j = sum over blocks so far, heads and queries of A[h,q,j]; keep the K best",
        reference="Wang et al., SpAtten: Efficient Sparse Attention Architecture with Cascade "
        "Token and Head Pruning, HPCA 2021",
        scheduler=ramp(),
        score=Spec("colsum", {"queries": "all", "agg": "sum", "cumulative": True}),
        reducer=TOPK,
        note="every block computes Q·K^T a second time",
    ),
    Preset(
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
    ),
)


LEARNED: tuple[Preset, ...] = (
    Preset(
        name="cropr",
        family="head",
        summary="drop tokens in every block by a trained vector, all back before the last block",
        formula="score_i = (sum_m Q_m)·x_i, one learned vector; R leave each block, one more the "
        "first; before the last block those that left come back as they were (LLF)",
        reference="Bergner et al., Token Cropr: Faster ViTs for Quite a Few Tasks, CVPR 2025",
        scheduler=until_last(),
        score=lambda step: None if step.keep == step.total else head(step),
        reducer=lambda step: Spec("return", {"fill": "stale"}) if step.keep == step.total else TOPK,
        parameters={"head": HEAD, "r": count("tokens that leave each block")},
        budget=("r",),
        required=("head",),
        note="--keep R: of the patches in the block before the last",
    ),
    Preset(
        name="dynamicvit",
        family="head",
        summary="keep what a trained head says, at three depths",
        formula="score = log-odds to keep of an MLP on x; K = int(T·rate^i) before the i-th stage",
        reference="Rao et al., DynamicViT: Efficient Vision Transformers with Dynamic Token "
        "Sparsification, NeurIPS 2021",
        scheduler=stages("block", before=True, whole=True),
        score=head,
        reducer=TOPK,
        parameters={"head": HEAD, "rate": rate("0.7")},
        budget=("rate",),
        required=("head",),
        published="rate=0.7 before blocks 3, 6, 9 of 12",
        note="one head for all stages, on the token alone",
    ),
    Preset(
        name="spvit",
        family="head",
        summary="keep what a trained head says, the mean of the rest as one token, at three depths",
        formula="score = log-odds to keep of the token selector; K = int(T·rate^i), then one "
        "package token, the mean of those that leave",
        reference="Kong et al., SPViT: Enabling Faster Vision Transformers via Latency-aware Soft "
        "Token Pruning, ECCV 2022",
        scheduler=stages("block", before=True, whole=True, fused=1),
        score=head,
        reducer=Spec("fuse", {"weights": "mean"}),
        parameters={"head": HEAD, "rate": rate("0.7")},
        budget=("rate",),
        required=("head",),
        published="rate=0.7 before blocks 3, 6, 9 of 12: 0.7, 0.49, 0.343",
        note="one head for all stages, on the token alone",
    ),
    Preset(
        name="tnt",
        family="head",
        summary="drop once, early, by a trained vector, then what is alike",
        formula="alpha = softmax(w·x_i); the best stay; of those, places of even and odd number "
        "match by cos(x), the most alike are dropped",
        reference="Rao et al., Training Noise Token Pruning, 2024",
        scheduler=single("block", Fraction(1, 6)),
        score=head,
        reducer=_tnt,
        parameters={
            "head": HEAD,
            "similar": count("that leave for being alike (paper: 25 of 196)"),
        },
        required=("head",),
        published="after block 2 of 12: 0.6 of 196 by score, then 25 fewer: --keep 0.469",
        note="even and odd places in place of random halves",
    ),
    Preset(
        name="svit",
        family="head",
        summary="let tokens skip blocks by a trained gate; the map stays whole",
        formula="margin of a two-layer MLP on LN(x); the K best run through the block, the others "
        "pass and may come back",
        reference="Liu et al., Revisiting Token Pruning for Object Detection and Instance "
        "Segmentation, WACV 2024",
        scheduler=around(),
        score=head,
        reducer=Spec("bypass"),
        parameters={"head": HEAD, "first": count("first block that may be bypassed; default L//4")},
        required=("head",),
        note="K best in place of a gate, whose count depends on the image; --keep R: of the "
        "patches that run through each of these blocks",
    ),
)


STATIC: tuple[Preset, ...] = (
    Preset(
        name="strided",
        family="static",
        summary="keep evenly spread tokens, the same for every image",
        formula="K patches at floor((i + 1/2)·T/K)",
        reference=_HAURUM,
        scheduler=single(),
        score=lambda step: Spec("static", {"pattern": "strided", "keep": step.keep}),
        reducer=TOPK,
        note="a control: indices are constants",
    ),
    Preset(
        name="radial",
        family="static",
        summary="keep the middle of the image",
        formula="score_j = −distance of the patch from the centre; three shrinking discs",
        reference=_HAURUM,
        scheduler=stages(),
        score=_radial,
        reducer=TOPK,
        parameters={
            "rate": rate(),
            "norm": Parameter(str, "l2", "of the distance", ("l1", "l2", "linf")),
        },
        budget=("rate",),
        needs=("grid",),
        published="at blocks 4, 7, 10",
        note="a control: indices are constants",
    ),
    Preset(
        name="random",
        family="static",
        summary="keep tokens drawn by a seed, the same for every image",
        formula="a permutation of the patches; the first K",
        reference=_HAURUM,
        scheduler=single(),
        score=lambda step: Spec("static", {"pattern": "random", "seed": step.values["seed"]}),
        reducer=TOPK,
        parameters={"seed": Parameter(int, 0, "of the permutation", least=0)},
        note="a control: indices are constants",
    ),
)


CALIBRATED: tuple[Preset, ...] = (
    Preset(
        name="fitprune",
        family="calibrated",
        summary="let as many tokens leave each block as cost no more than a share of its attention",
        formula="score_j = max_h A[h,cls,j] · max_h sum_q A[h,q,j]; in block l as many leave as "
        "lose at most alpha of the sum of either factor, mean over images; alpha by bisection",
        reference="Ye et al., Fit and Prune: Fast and Training-free Visual Token Pruning for "
        "Multi-modal Large Language Models, AAAI 2025",
        scheduler=fit(_PAID, _RECEIVED),
        score=Spec("product", {"terms": [part(_PAID, power=1.0), part(_RECEIVED, power=1.0)]}),
        reducer=TOPK,
        parameters={"alpha": _share("of the attention that may be lost in a block")},
        budget=("alpha",),
        needs=("calibration",),
        note="the encoder's CLS row in place of a language model's text; every block computes "
        "Q·K^T a second time",
    ),
    Preset(
        name="g-search",
        family="calibrated",
        summary="from the first block on, keep as few tokens as lose no more than a tolerance",
        formula="score_j = mean_h A[h,cls,j]; in block l the least K whose tokens receive 1 − "
        "tolerance of what those still there receive, mean over images",
        reference=_SEARCH + " (G-Search)",
        scheduler=greedy(CLS),
        score=CLS,
        reducer=TOPK,
        parameters={"tolerance": _share("of what the tokens still there receive, lost in a block")},
        budget=("tolerance",),
        needs=("calibration",),
        note="attention lost stands for the loss of the task's metric",
    ),
    Preset(
        name="p-sigmoid",
        family="calibrated",
        summary="let tokens leave along a sigmoid over the blocks, fitted on images",
        formula="score_j = mean_h A[h,cls,j]; left after block l: T − (T − K)·s((l+1)/L), s a "
        "sigmoid with s(0) = 0, s(1) = 1; its middle and width lose the least attention among "
        "those that keep no more tokens in the mean than a straight line",
        reference=_SEARCH + " (P-Sigmoid)",
        scheduler=sigmoid(CLS),
        score=CLS,
        reducer=TOPK,
        parameters={
            "middle": _share("where half has left, as a share of the depth; default searched"),
            "width": Parameter(
                float, None, "of the sigmoid; default searched", least=0.01, most=10.0
            ),
        },
        needs=("calibration",),
        note="a grid of 9 middles and 5 widths in place of Bayesian optimisation",
    ),
)
