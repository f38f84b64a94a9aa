"""Presets that keep the map whole or bring it back, for dense heads."""

from __future__ import annotations

from fractions import Fraction

from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Spec
from tcompile.methods.context import Step
from tcompile.methods.presets.base import CLS, Preset, count
from tcompile.methods.schedulers import around, inside, lined, lines, local_then_global


def _algm(step: Step) -> Spec:
    if step.number == 0 and step.block < max(step.context.shape.blocks // 3, 1):
        return Spec("windows", {"side": 2, "metric": "x", "sizes": True})
    return Spec("merge", {"metric": "x", "prop_attn": False})


def _lines(step: Step) -> Spec:
    turn = lined(step.context.shape.blocks).index(step.block) % 2
    return Spec("lines", {"axis": ("columns", "rows")[turn]})


DENSE: tuple[Preset, ...] = (
    Preset(
        name="bypass",
        family="dense",
        summary="let the tokens that matter least skip blocks; the map stays whole",
        formula="around each block: x_S' = block(x_S), the rest unchanged, S the K = ceil(keep·T) "
        "best by what the block's own attention pays them, or by length ‖x_j‖ in models with "
        "windows, whose global blocks alone are bypassed",
        reference="Xu et al., No Token Left Behind: Efficient Vision Transformer via Dynamic "
        "Token Idling, AJCAI 2023; Liu et al., Revisiting Token Pruning for Object Detection and "
        "Instance Segmentation, WACV 2024",
        scheduler=around(),
        score=CLS,
        reducer=Spec("bypass"),
        parameters={
            "first": count("first block that may be bypassed; default L//4, with windows 0")
        },
        note="--keep R: of the patches that run through each of these blocks",
    ),
    Preset(
        name="idlevit",
        family="dense",
        summary="let tokens idle through blocks, more of them the deeper; any may come back",
        formula="c_j = mean_h q_cls·k_j (before the softmax); the K = int(T·rate^i) best run "
        "through the block, i = 1 in the first L//4 blocks from L//3 on, then 2, then 3; the "
        "others pass",
        reference="Xu et al., No Token Left Behind: Efficient Vision Transformer via Dynamic "
        "Token Idling, AJCAI 2023",
        scheduler=around(Fraction(1, 3), powers=True),
        score=Spec("cls", {"softmax": "pre"}),
        reducer=Spec("bypass"),
        parameters={
            "rate": Parameter(
                Fraction, None, "of the patches, to the power of the stage", least=0.001, most=1
            )
        },
        budget=("rate",),
        published="blocks 4 to 11 of 12",
        note="--keep R: of the patches that run through the last block",
    ),
    Preset(
        name="evo-vit",
        family="dense",
        summary="let tokens skip blocks by what CLS has attended to so far",
        formula="g ← (1−tau)·g + tau·sum_h A[h,cls,j] over the blocks so far, tau = 0.5; the K "
        "best run through each block, the others pass",
        reference="Xu et al., Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer, "
        "AAAI 2022",
        scheduler=around(Fraction(1, 3), behind=True),
        score=Spec("cls", {"agg": "sum", "source": "ema", "tau": 0.5}),
        reducer=Spec("bypass"),
        published="--keep 0.5 in blocks 4 to 11 of 12",
        note="tokens are chosen for each block, not at blocks 4 and 8 only; no representative "
        "token; --keep R: of the patches that run through each of these blocks",
    ),
    Preset(
        name="algm",
        family="merge",
        summary="merge alike 2 x 2 windows first, alike pairs anywhere later",
        formula="first block: the windows of highest mean cos(x) between two of their tokens "
        "become their last token, the mean; block L//3: ToMe's pairs by cos(x); sizes weigh, not "
        "in attention",
        reference="Norouzi et al., ALGM: Adaptive Local-then-Global Token Merging for Efficient "
        "Semantic Segmentation with Plain Vision Transformers, CVPR 2024",
        scheduler=local_then_global(),
        score=None,
        reducer=_algm,
        parameters={
            "local": count(
                "windows that merge; default a sixth of what leaves, or more if it must"
            ),
            "total": Parameter(int, None, "patch tokens that are left", least=1),
        },
        budget=("total",),
        needs=("grid",),
        published="blocks 1 and 5 of 12, thresholds 0.88 and mean + std",
        note="fixed counts in place of thresholds; --outputs restored brings the map back",
    ),
    Preset(
        name="atme",
        family="merge",
        summary="merge alike columns and rows, so that the grid stays one",
        formula="mean over the rows of cos(x) of neighbouring columns; the most alike pairs of "
        "columns become their mean; in the next block the same for rows",
        reference="Wang et al., CAIT: Triple-Win Compression towards High Accuracy, Fast "
        "Inference, and Favorable Transferability For ViTs, 2023",
        scheduler=lines(),
        score=None,
        reducer=_lines,
        needs=("grid",),
        note="--keep R: the smallest grid of at least ceil(R·T) tokens; formula and depths are "
        "ours, the paper's are trained",
    ),
    Preset(
        name="tomesd",
        family="dense",
        summary="merge for the attention only: the map stays whole",
        formula="of each cell of sy x sx the first token stays, the most alike of the others (cos "
        "x) merge into these, plain means; after the attention they get their target's row back",
        reference="Bolya and Hoffman, Token Merging for Fast Stable Diffusion, CVPRW 2023",
        scheduler=inside(),
        score=None,
        reducer=lambda step: Spec(
            "merge",
            {
                "split": "grid",
                "metric": "x",
                "combine": "plain",
                "sizes": False,
                "prop_attn": False,
                "sx": step.values["sx"],
                "sy": step.values["sy"],
            },
        ),
        parameters={
            "ratio": Parameter(
                Fraction, None, "tokens that leave (paper: 0.5, 0.6)", least=0, most=1
            ),
            "sx": Parameter(int, 2, "columns of a cell", least=1),
            "sy": Parameter(int, 2, "rows of a cell", least=1),
        },
        budget=("ratio",),
        needs=("grid",),
        published="ratio=0.5 of Stable Diffusion 1.5",
        note="--keep R: of the patches that enter each attention; the MLP sees all; the first "
        "token of a cell, not a random one",
    ),
)
