"""Presets that reduce once at the end of a vision tower, for what reads its tokens."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Spec
from tcompile.methods.context import Step
from tcompile.methods.presets.base import CLS, TOPK, Preset
from tcompile.methods.schedulers import cells, dominant, frames, rows, single
from tcompile.methods.schedulers.base import half_up


def _contextual(step: Step) -> Spec:
    given, leave = step.values["contextual"], step.keep + step.context.has_cls
    return Spec(
        "contextual",
        {"contextual": max(half_up(Fraction(5 * leave, 32)), 1) if given is None else given},
    )


def _pool(step: Step) -> Spec:
    side, (h, w) = step.values["side"], step.context.grid[-2:]
    frames_, sides = step.total // (h * w), range(1, max(h, w) + 1)
    fits = (s for s in sides if frames_ * ceil(h / s) * ceil(w / s) == step.keep)
    return Spec("pool", {"side": next(fits) if side is None else side})


TOWER: tuple[Preset, ...] = (
    Preset(
        name="fastervlm",
        family="output",
        summary="keep what CLS attends to at the end of the tower",
        formula="score_j = mean_h A[h,cls,j] of the last block that the output comes from; the K "
        "best, in their order",
        reference="Zhang et al., [CLS] Attention is All You Need for Training-Free Visual Token "
        "Pruning: Make VLM Inference Faster, 2024",
        scheduler=single("output"),
        score=CLS,
        reducer=TOPK,
        published="--keep 0.25, 0.1, 0.05: 144, 58, 29 of 576",
    ),
    Preset(
        name="fopru",
        family="output",
        summary="keep what received the most attention, token by token or in whole rows",
        formula="score_j = sum_q mean_h A[h,q,j]; the K best, or the rows of the grid of highest "
        "sum, in their order",
        reference="Jiang et al., FoPru: Focal Pruning for Efficient Large Vision-Language Models, "
        "2024",
        scheduler=rows(),
        score=Spec("colsum", {"queries": "all", "agg": "mean"}),
        reducer=lambda step: Spec("topk", {"unit": "row"} if step.values["unit"] == "row" else {}),
        parameters={"unit": Parameter(str, "token", "what leaves", ("token", "row"))},
        published="--keep 0.25",
        note="computes Q·K^T of one block a second time",
    ),
    Preset(
        name="visionzip",
        family="output",
        summary="keep what CLS attends to, and a few tokens that sum up the rest",
        formula="dominant: the best by sum_h A[h,cls,j]; contextual: every n-th of the rest is a "
        "target; the others go to their argmax cos(k): x_t + sum x_s / max(1, n_t)",
        reference="Yang et al., VisionZip: Longer is Better but Not Necessary in Vision Language "
        "Models, CVPR 2025",
        scheduler=dominant(),
        score=Spec("cls", {"agg": "sum"}),
        reducer=_contextual,
        parameters={
            "dominant": Parameter(
                int, None, "tokens kept, CLS among them where there is one", least=2
            ),
            "contextual": Parameter(
                int, None, "tokens that sum up the rest; default 5/32 of all that leave", least=1
            ),
        },
        budget=("dominant",),
        published="of 577: dominant=162,contextual=30; 108 and 20; 54 and 10",
    ),
    Preset(
        name="dart",
        family="output",
        summary="keep what is least like a few pivots; looks at no attention",
        formula="pivots: the 4 of largest ‖x‖_1; score_j = −max_p cos(x_j, x_p), pivots stay",
        reference="Wen et al., Stop Looking for Important Tokens in Multimodal Language Models: "
        "Duplication Matters More, EMNLP 2025",
        scheduler=single("output"),
        score=lambda step: Spec("dup", {"reference": "pivots", "count": step.values["pivots"]}),
        reducer=TOPK,
        parameters={"pivots": Parameter(int, 4, "how many", least=1)},
        published="--keep 0.25, --keep 0.5",
        note="pivots of the image alone; released: as many of the text",
    ),
    Preset(
        name="vispruner",
        family="output",
        summary="keep what CLS attends to, and of the rest what is unlike each other",
        formula="important·K best by mean_h A[h,cls,j]; of the rest, in rounds, even against odd "
        "places: up to 8 of highest max cos(x) are dropped until K are left",
        reference="Zhang et al., Beyond Text-Visual Attention: Exploiting Visual Cues for "
        "Effective Token Pruning in VLMs, ICCV 2025",
        scheduler=single("output"),
        score=CLS,
        reducer=lambda step: Spec("diverse", {"important": step.values["important"]}),
        parameters={
            "important": Parameter(
                float, 0.5, "share of the K kept for attention", least=0.0, most=1.0
            )
        },
    ),
    Preset(
        name="prumerge",
        family="output",
        summary="keep what CLS attends to, each with its 32 nearest in it; one token for the rest",
        formula="c = softmax_j(q_cls·k_j/sqrt C), one head of full width; the K − 1 best: x_t += "
        "sum of c_j x_j over the 32 nearest by cos(k); then one token sum c_j x_j of the rest",
        reference="Shang et al., LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large "
        "Multimodal Models, ICCV 2025",
        scheduler=single("output"),
        score=Spec("cls", {"heads": "joined"}),
        reducer=Spec("neighbours", {"neighbours": 32}),
        published="--keep 0.125",
        note="the fixed ratio in place of outliers (Q3 + 1.5 IQR), whose count depends on the "
        "image; sums are not renormalised; c is of the block that the features come from "
        "(released: of the last one, the features of the one before)",
    ),
    Preset(
        name="llava-zip",
        family="output",
        summary="average cells of the grid",
        formula="y = mean of each side x side cell",
        reference="Wang et al., LLaVA-Zip: Adaptive Visual Token Compression with Intrinsic Image "
        "Information, 2024",
        scheduler=cells(),
        score=None,
        reducer=_pool,
        parameters={"side": Parameter(int, None, "of a cell (paper: 1, 2, 3 by image)", least=1)},
        budget=("side",),
        needs=("grid",),
        note="one side for every image; --keep takes the side that comes nearest",
    ),
    Preset(
        name="dycoke",
        family="output",
        summary="of every four frames keep the first, of the others what changed most",
        formula="score_j = −cos(x_j, the same place in the frame compared with: 2 with 1, 4 with "
        "3, then 3 with 1); the first frame of four stays whole",
        reference="Tao et al., DyCoke: Dynamic Compression of Tokens for Fast Video Large "
        "Language Models, CVPR 2025 (token temporal merging)",
        scheduler=frames(),
        score=Spec("dup", {"reference": "frame"}),
        reducer=Spec("topk", {"within": "frames"}),
        parameters={
            "rate": Parameter(
                Fraction, None, "kept of the later frames (paper: 0.3)", least=0.001, most=1
            )
        },
        budget=("rate",),
        needs=("frames",),
        published="rate=0.3",
    ),
)
