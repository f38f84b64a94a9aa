"""Presets whose score is a small trained head: its weights are yours, in a file."""

from __future__ import annotations

from fractions import Fraction

from tcompile.core.schedule import Spec
from tcompile.methods.context import Step
from tcompile.methods.presets.base import Preset
from tcompile.methods.presets.common import HEAD, TOPK, chain, count, head, rate
from tcompile.methods.schedulers import around, single, stages, until_last

CROPR = Preset(
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
)

DYNAMICVIT = Preset(
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
)

SPVIT = Preset(
    name="spvit",
    family="head",
    summary="keep what a trained head says, the mean of the rest as one token, at three depths",
    formula="score = log-odds to keep of the token selector; K = int(T·rate^i), then one package "
    "token, the mean of those that leave",
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
)


def _tnt(step: Step) -> Spec:
    leave, similar = step.before - step.keep, step.values["similar"]
    # 25 for being alike after 79 by score, where published.
    alike = int(leave * Fraction(25, 104)) if similar is None else min(similar, leave)
    drop = Spec("merge", {"metric": "x", "combine": "drop", "sizes": False, "prop_attn": False})
    return chain((TOPK, step.before), (TOPK, step.keep + alike), (drop, step.keep))


TNT = Preset(
    name="tnt",
    family="head",
    summary="drop once, early, by a trained vector, then what is alike",
    formula="alpha = softmax(w·x_i); the best stay; of those, places of even and odd number match "
    "by cos(x), the most alike are dropped",
    reference="Rao et al., Training Noise Token Pruning, 2024",
    scheduler=single("block", Fraction(1, 6)),
    score=head,
    reducer=_tnt,
    parameters={"head": HEAD, "similar": count("that leave for being alike (paper: 25 of 196)")},
    required=("head",),
    published="after block 2 of 12: 0.6 of 196 by score, then 25 fewer: --keep 0.469",
    note="even and odd places in place of random halves",
)

SVIT = Preset(
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
    note="K best in place of a gate, whose count depends on the image; --keep R: of the patches "
    "that run through each of these blocks",
)

LEARNED: tuple[Preset, ...] = (CROPR, DYNAMICVIT, SPVIT, TNT, SVIT)
