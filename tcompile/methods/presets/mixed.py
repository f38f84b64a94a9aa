"""Presets that drop and merge, or follow a published list."""

from __future__ import annotations

from fractions import Fraction

from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Spec
from tcompile.methods.context import Step
from tcompile.methods.counts import half_up
from tcompile.methods.presets.base import Preset
from tcompile.methods.presets.common import CLS, PROP_ATTN, TOPK, chain, count, rate, share
from tcompile.methods.schedulers import constant, counted, leaving, stages

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


DIFFRATE = Preset(
    name="diffrate",
    family="prune, merge",
    summary="drop the least attended, merge the next into the most alike, by learned counts",
    formula="order by mean_h A[h,cls,j]; keep the first p_l; those after the first m_l merge into "
    "their argmax cos(x): plain mean, size += size·cos; later logits += log size",
    reference="Chen et al., DiffRate: Differentiable Compression Rate for Efficient Vision "
    "Transformers, ICCV 2023",
    scheduler=counted("table", {k: [m - 1 for m in v[1]] for k, v in DIFFRATE_TABLES.items()}),
    score=CLS,
    reducer=_diffrate,
    parameters={
        "table": Parameter(str, None, "published counts p_l and m_l", ("deit-s", "deit-b"))
    },
    budget=("table",),
    published="table=deit-s: 2.9 G, 79.54 %; table=deit-b: 11.5 G, 81.50 %; 12 blocks, 196 patches",
)


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


ZERO_TPRUNE = Preset(
    name="zero-tprune",
    family="prune",
    summary="rank tokens by the graph of the attention, drop the alike and then the least",
    formula="s ← A^T s, 30, 5 or 1 times by depth, from CLS sqrt(N) and 1 else; s_j = rms over "
    "the heads with variance in [0.01, 0.7]; the half that is less important by one vote matches "
    "the other by cos(k), and the most alike leave; then the least of s",
    reference="Wang et al., Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the "
    "Attention Graph in Pre-Trained Transformers, CVPR 2024",
    scheduler=stages("block"),
    score=_votes,
    reducer=_zero_tprune,
    parameters={
        "rate": rate(),
        "similar": share("0.5", "of those that leave, the share that leaves for being alike"),
    },
    budget=("rate",),
    note="places and counts are searched per model in the paper; without CLS all start alike; "
    "computes Q·K^T twice more",
)

#: Tokens that leave each block.
PYRA_LISTS = {
    "high": (
        (40, 34, 30, 24, 18, 14, 10, 8, 4, 4, 3, 3),
        (20, 19, 18, 17, 15, 13, 13, 12, 10, 9, 8, 6, 6, 4, 4, 4, 3, 3, 2, 2, 1, 1, 1, 1),
    ),
    "low": ((*[16] * 11, 10),),
}

PYRA = Preset(
    name="pyra",
    family="merge",
    summary="merge similar tokens by a list that was tuned, most of them early",
    formula="ToMe's merge of r_l tokens in block l (without the trained modulation)",
    reference="Xiong et al., PYRA: Parallel Yielding Re-Activation for Training-Inference "
    "Efficient Task Adaptation, ECCV 2024",
    scheduler=leaving("level", PYRA_LISTS),
    score=None,
    reducer=lambda step: Spec("merge", {} if step.values["prop_attn"] else {"prop_attn": False}),
    parameters={
        "level": Parameter(str, None, "published list of r_l", ("low", "high")),
        "prop_attn": PROP_ATTN,
    },
    budget=("level",),
    published="level=low (16 in each block, 10 in the last), level=high (40, 34, … 3) for ViT-B "
    "and DeiT-B; level=high (20, 19, … 1) for the 24 blocks of ViT-L",
)

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

FICOCO = Preset(
    name="ficoco",
    family="merge",
    summary="spread the least informative tokens over those that they attend to, in late blocks",
    formula="score = 0.35·l2(logit[cls,j]) − 0.65·l2(mean_i logit[j,i]), the least of each 2 x 2 "
    "window pushed down; the r lowest go to the kept of highest logit, softmax weights; "
    "x_t = (x_t + sum w x)/(1 + sum w)",
    reference="Han et al., Filter, Correlate, Compress: Training-Free Token Reduction for MLLM "
    "Acceleration, 2024",
    scheduler=constant(first=Fraction(1, 2)),
    score=_FICOCO,
    reducer=Spec("soft", {"targets": 1}),
    parameters={"r": count("tokens that leave each block of the second half (paper: 42 of 577)")},
    budget=("r",),
    needs=("grid",),
    published="r=42 in blocks 12 to 23 of CLIP ViT-L/14@336",
    note="one target a token in place of those above a quantile, whose number depends on the image",
)

MIXED: tuple[Preset, ...] = (DIFFRATE, ZERO_TPRUNE, PYRA, FICOCO)
