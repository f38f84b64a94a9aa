"""Presets that merge tokens into others in every block; and those that drop and merge, or follow a
published list."""

from __future__ import annotations

from fractions import Fraction

from tcompile.core.errors import UsageError
from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Spec
from tcompile.methods.context import Step
from tcompile.methods.presets.base import CLS, PROP_ATTN, TOPK, Preset, chain, count, rate
from tcompile.methods.schedulers import constant, counted, leaving, ratio, stages
from tcompile.methods.schedulers.base import half_up


def _tome(step: Step) -> Spec:
    plain = {"prop_attn": True, "parity": "stripped"}
    return Spec("merge", {k: step.values[k] for k, v in plain.items() if step.values[k] != v})


def _energy(step: Step) -> Spec:
    margin = step.values["margin"] * (1 - step.block / step.context.shape.blocks)
    return Spec("energy", {"margin": round(margin, 6), "form": step.values["energy_form"]})


def _pitome(step: Step) -> Spec:
    mode, blocks = step.values["mode"], step.context.shape.blocks
    parity = mode == "parity" or (mode == "mixed" and step.block < (blocks + 1) // 2)
    return Spec("merge", {"split": "energy" if parity else "protected", "prop_attn": False})


def _tofu(step: Step) -> Spec:
    switch = step.values["switch"]
    early = step.block < (step.context.shape.blocks // 2 if switch is None else switch)
    return Spec("merge", {"combine": "drop" if early else step.values["combine"]})


def _turbo(step: Step) -> Spec:
    alpha, beta, gamma = (step.values[k] for k in ("alpha", "beta", "gamma"))
    blocks = step.context.shape.blocks
    if gamma >= blocks:
        raise UsageError(f"gamma={gamma} is not a block: 0 to {blocks - 1}", where="--method")
    return Spec("merge", {"penalty": 30 * alpha * beta ** abs(gamma - step.block)})


#: Tokens after pruning and after merging of each block, CLS included.
DIFFRATE_TABLES = {
    "deit-s": (
        (197, 196, 190, 168, 150, 139, 129, 117, 99, 78, 58, 3),
        (197, 194, 176, 156, 141, 133, 121, 107, 88, 64, 56, 3),
    ),
    "deit-b": (
        (197, 197, 197, 188, 170, 154, 139, 123, 107, 72, 43, 3),
        (197, 197, 192, 178, 158, 145, 127, 111, 94, 50, 35, 3),
    ),
}


def _diffrate(step: Step) -> Spec:
    pruned, merged = DIFFRATE_TABLES[step.values["table"] or "deit-s"]
    at = step.block * len(merged) // step.context.shape.blocks
    before = merged[at - 1] if at else 197
    dropped = Fraction(before - pruned[at], max(before - merged[at], 1))
    middle = step.before - half_up((step.before - step.keep) * dropped)
    merge = Spec("assign", {"metric": "x", "combine": "mean", "sizes": "similarity"})
    return chain((TOPK, step.before), (TOPK, middle), (merge, step.keep))


def _zero_tprune(step: Step) -> Spec:
    similar = int((step.before - step.keep) * step.values["similar"])
    drop = Spec("merge", {"split": "halves", "combine": "drop", "sizes": False, "prop_attn": False})
    first = (drop, step.before - similar, _pagerank(step, 1))
    return chain((TOPK, step.before), first, (TOPK, step.keep))


def _votes(step: Step) -> Spec:
    return _pagerank(step, (30, 5, 1)[3 * step.block // step.context.shape.blocks])


def _pagerank(step: Step, iterations: int) -> Spec:
    cls = {} if step.context.has_cls else {"cls_boost": False}
    return Spec("pagerank", {"iterations": iterations, **cls})


#: Tokens that leave each block.
PYRA_LISTS = {
    "high": (
        (40, 34, 30, 24, 18, 14, 10, 8, 4, 4, 3, 3),
        (20, 19, 18, 17, 15, 13, 13, 12, 10, 9, 8, 6, 6, 4, 4, 4, 3, 3, 2, 2, 1, 1, 1, 1),
    ),
    "low": ((*[16] * 11, 10),),
}


_FICOCO = Spec(
    "window_penalty",
    {
        "score": {
            "name": "sum",
            "terms": [
                {"score": {"name": "cls", "softmax": "pre"}, "weight": 0.35, "norm": "l2"},
                {"score": {"name": "rowmean"}, "weight": -0.65, "norm": "l2"},
            ],
        },
        "side": 2,
        "factor": 2.0,
    },
)

MERGING: tuple[Preset, ...] = (
    Preset(
        name="tome",
        family="merge",
        auto=True,
        summary="merge similar tokens in every block",
        formula="metric = mean_h K; even positions match odd ones by cosine, the r best pairs "
        "merge into their size-weighted mean; later logits += log size; pooling weighs by size",
        reference="Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023",
        scheduler=constant(half=True),
        score=None,
        reducer=_tome,
        parameters={
            "r": count("tokens merged per block (paper: 8 to 16 for ViT-B)"),
            "inflect": Parameter(
                Fraction,
                Fraction(0),
                "-1: r decreases to 0 over the blocks (the "
                "paper's decreasing schedule), 1: it grows from 0",
                least=-1,
                most=1,
            ),
            "prop_attn": PROP_ATTN,
            "parity": Parameter(
                str,
                "stripped",
                "even and odd places of the patches, or of all tokens as in the released code",
                ("stripped", "reference"),
            ),
        },
        budget=("r",),
        published="ViT-S and ViT-B r=13, ViT-L r=7, ViT-L@384 r=23, ViT-H@518 r=40; "
        "prop_attn=false for MAE weights off the shelf",
    ),
    Preset(
        name="pitome",
        family="merge",
        auto=True,
        summary="merge tokens of high energy (many alike), protect the others",
        formula="E_i = mean_j f(cos(k_i,k_j) − m), m = margin·(1 − l/L), f = ELU or the paper's; "
        "parity: even against odd ranks of E; protected: only the 2r of highest E take part; r = "
        "floor(T − T·ratio) pairs merge into their size-weighted mean",
        reference="Tran et al., Accelerating Transformers with Spectrum-Preserving Token Merging, "
        "NeurIPS 2024",
        scheduler=ratio(half=True),
        score=_energy,
        reducer=_pitome,
        parameters={
            "ratio": Parameter(
                Fraction,
                None,
                "tokens kept in each block (paper: 0.9 to 0.95)",
                least=0.001,
                most=1,
            ),
            "margin": Parameter(float, 0.75, "in block 0 (0.75 timm, 0.95 CLIP, 0.9 paper)"),
            "energy_form": Parameter(
                str, "elu", "of f: the code's or the paper's", ("elu", "paper")
            ),
            "mode": Parameter(
                str,
                "mixed",
                "mixed: parity in the first half of the blocks, then protected",
                ("mixed", "protected", "parity"),
            ),
        },
        budget=("ratio",),
        published="ratio=0.9 to 0.95, in every block; 0.9125 for ImageNet",
        note="no proportional attention, as released; every block computes all cosines",
    ),
    Preset(
        name="tofu",
        family="merge",
        auto=True,
        summary="drop similar tokens in early blocks, merge them in late ones, keeping their "
        "length",
        formula="ToMe's pairs; block < switch: the one that leaves is dropped; from there on "
        "mlerp: x̄/‖x̄‖ · max_k ‖x_k‖ of the group, or its mean",
        reference="Kim et al., Token Fusion: Bridging the Gap between Token Pruning and Token "
        "Merging, WACV 2024",
        scheduler=constant(half=True),
        score=None,
        reducer=_tofu,
        parameters={
            "r": count("tokens merged per block (paper: 8 to 20 for ViT-B, 13 for ViT-S)"),
            "combine": Parameter(str, "mlerp", "in late blocks", ("mlerp", "mean")),
            "switch": count("the first late block; default L//2"),
        },
        budget=("r",),
        published="r=8: ViT-B 83.22 %, r=20: 74.06 % (ToMe 67.54 %)",
    ),
    Preset(
        name="turbo",
        family="merge",
        auto=True,
        summary="merge similar tokens, but not those that CLS attends to",
        formula="edge = cos(k_a,k_b) − 30·alpha·beta^|gamma−l| · mean_h A[h,cls,a]; ToMe's merge",
        reference="Ju et al., Turbo: Informativity-Driven Acceleration Plug-In for "
        "Vision-Language Models, ECCV 2024",
        scheduler=constant(half=True, least=40),
        score=CLS,
        reducer=_turbo,
        parameters={
            "r": count("tokens merged per block; none once fewer than 40 are left"),
            "alpha": Parameter(
                float, 1.0, "weight of the attention (paper: 1 to 5)", least=0.0, most=1000.0
            ),
            "beta": Parameter(
                float, 1.0, "how it fades with the distance from block gamma", least=0.0, most=2.0
            ),
            "gamma": Parameter(int, 0, "the block of full weight", least=0),
        },
        budget=("r",),
    ),
    Preset(
        name="mctf",
        family="merge",
        auto=True,
        summary="merge tokens that are alike, matter little and stand for few, both ways",
        formula="edge = ((cos+1)/2) · (â_i â_j)^(1/20) · (ŝ_i ŝ_j)^(1/40), â = 1/mean_{h,q} A, ŝ "
        "= 1/size, over their maxima; r//2 pairs A→B, the rest B→A; weights a·s",
        reference="Lee et al., Multi-criteria Token Fusion with One-step-ahead Attention for "
        "Efficient Vision Transformers, CVPR 2024",
        scheduler=constant(half=True),
        score=Spec("colsum", {"queries": "all", "agg": "mean"}),
        reducer=Spec("merge", {"criteria": "mctf", "bidirectional": True, "combine": "score"}),
        parameters={"r": count("tokens merged per block (paper: 16 for DeiT-S)")},
        budget=("r",),
        published="r=16: DeiT-S 79.2 % without training",
        note="this block's attention in place of the next one's; computes Q·K^T a second time",
    ),
)


MIXED: tuple[Preset, ...] = (
    Preset(
        name="diffrate",
        family="prune, merge",
        auto=True,
        summary="drop the least attended, merge the next into the most alike, by learned counts",
        formula="order by mean_h A[h,cls,j]; keep the first p_l; those after the first m_l merge "
        "into their argmax cos(x): plain mean, size += size·cos; later logits += log size",
        reference="Chen et al., DiffRate: Differentiable Compression Rate for Efficient Vision "
        "Transformers, ICCV 2023",
        scheduler=counted("table", {k: [m - 1 for m in v[1]] for k, v in DIFFRATE_TABLES.items()}),
        score=CLS,
        reducer=_diffrate,
        parameters={
            "table": Parameter(str, None, "published counts p_l and m_l", ("deit-s", "deit-b"))
        },
        budget=("table",),
        published="table=deit-s: 2.9 G, 79.54 %; table=deit-b: 11.5 G, 81.50 %; 12 blocks, 196 "
        "patches",
    ),
    Preset(
        name="zero-tprune",
        family="prune",
        summary="rank tokens by the graph of the attention, drop the alike and then the least",
        formula="s ← A^T s, 30, 5 or 1 times by depth, from CLS sqrt(N) and 1 else; s_j = rms "
        "over the heads with variance in [0.01, 0.7]; the half that is less important by one vote "
        "matches the other by cos(k), and the most alike leave; then the least of s",
        reference="Wang et al., Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the "
        "Attention Graph in Pre-Trained Transformers, CVPR 2024",
        scheduler=stages("block"),
        score=_votes,
        reducer=_zero_tprune,
        parameters={
            "rate": rate(),
            "similar": Parameter(
                Fraction,
                Fraction(1, 2),
                "of those that leave, the share that leaves for being alike",
                least=0,
                most=1,
            ),
        },
        budget=("rate",),
        note="places and counts are searched per model in the paper; without CLS all start alike; "
        "computes Q·K^T twice more",
    ),
    Preset(
        name="pyra",
        family="merge",
        summary="merge similar tokens by a list that was tuned, most of them early",
        formula="ToMe's merge of r_l tokens in block l (without the trained modulation)",
        reference="Xiong et al., PYRA: Parallel Yielding Re-Activation for Training-Inference "
        "Efficient Task Adaptation, ECCV 2024",
        scheduler=leaving("level", PYRA_LISTS),
        score=None,
        reducer=lambda step: Spec(
            "merge", {} if step.values["prop_attn"] else {"prop_attn": False}
        ),
        parameters={
            "level": Parameter(str, None, "published list of r_l", ("low", "high")),
            "prop_attn": PROP_ATTN,
        },
        budget=("level",),
        published="level=low (16 in each block, 10 in the last), level=high (40, 34, … 3) for "
        "ViT-B and DeiT-B; level=high (20, 19, … 1) for the 24 blocks of ViT-L",
    ),
    Preset(
        name="ficoco",
        family="merge",
        summary="spread the least informative tokens over those that they attend to, in late "
        "blocks",
        formula="score = 0.35·l2(logit[cls,j]) − 0.65·l2(mean_i logit[j,i]), the least of each 2 "
        "x 2 window pushed down; the r lowest go to the kept of highest logit, softmax weights; "
        "x_t = (x_t + sum w x)/(1 + sum w)",
        reference="Han et al., Filter, Correlate, Compress: Training-Free Token Reduction for "
        "MLLM Acceleration, 2024",
        scheduler=constant(first=Fraction(1, 2)),
        score=_FICOCO,
        reducer=Spec("soft", {"targets": 1}),
        parameters={
            "r": count("tokens that leave each block of the second half (paper: 42 of 577)")
        },
        budget=("r",),
        needs=("grid",),
        published="r=42 in blocks 12 to 23 of CLIP ViT-L/14@336",
        note="one target a token in place of those above a quantile, whose number depends on the "
        "image",
    ),
)
