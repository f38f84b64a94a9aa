"""Presets that merge tokens into others, in every block."""

from __future__ import annotations

from fractions import Fraction

from tcompile.core.errors import UsageError
from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Spec
from tcompile.methods.context import Step
from tcompile.methods.presets.base import Preset
from tcompile.methods.presets.common import CLS, PROP_ATTN, count
from tcompile.methods.schedulers import constant, ratio


def _tome(step: Step) -> Spec:
    plain = {"prop_attn": True, "parity": "stripped"}
    return Spec("merge", {k: step.values[k] for k, v in plain.items() if step.values[k] != v})


TOME = Preset(
    name="tome",
    family="merge",
    summary="merge similar tokens in every block",
    formula="metric = mean_h K; even positions match odd ones by cosine, the r best pairs merge "
    "into their size-weighted mean; later logits += log size; pooling weighs by size",
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
    published="ViT-S and ViT-B r=13, ViT-L r=7, ViT-L@384 r=23, ViT-H@518 r=40; prop_attn=false "
    "for MAE weights off the shelf",
)


def _energy(step: Step) -> Spec:
    margin = step.values["margin"] * (1 - step.block / step.context.shape.blocks)
    return Spec("energy", {"margin": round(margin, 6), "form": step.values["energy_form"]})


def _pitome(step: Step) -> Spec:
    mode, blocks = step.values["mode"], step.context.shape.blocks
    parity = mode == "parity" or (mode == "mixed" and step.block < (blocks + 1) // 2)
    return Spec("merge", {"split": "energy" if parity else "protected", "prop_attn": False})


PITOME = Preset(
    name="pitome",
    family="merge",
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
            Fraction, None, "tokens kept in each block (paper: 0.9 to 0.95)", least=0.001, most=1
        ),
        "margin": Parameter(float, 0.75, "in block 0 (0.75 timm, 0.95 CLIP, 0.9 paper)"),
        "energy_form": Parameter(str, "elu", "of f: the code's or the paper's", ("elu", "paper")),
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
)


def _tofu(step: Step) -> Spec:
    switch = step.values["switch"]
    early = step.block < (step.context.shape.blocks // 2 if switch is None else switch)
    return Spec("merge", {"combine": "drop" if early else step.values["combine"]})


TOFU = Preset(
    name="tofu",
    family="merge",
    summary="drop similar tokens in early blocks, merge them in late ones, keeping their length",
    formula="ToMe's pairs; block < switch: the one that leaves is dropped; from there on mlerp: "
    "x̄/‖x̄‖ · max_k ‖x_k‖ of the group, or its mean",
    reference="Kim et al., Token Fusion: Bridging the Gap between Token Pruning and Token Merging, "
    "WACV 2024",
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
)


def _turbo(step: Step) -> Spec:
    alpha, beta, gamma = (step.values[k] for k in ("alpha", "beta", "gamma"))
    blocks = step.context.shape.blocks
    if gamma >= blocks:
        raise UsageError(f"gamma={gamma} is not a block: 0 to {blocks - 1}", where="--method")
    return Spec("merge", {"penalty": 30 * alpha * beta ** abs(gamma - step.block)})


TURBO = Preset(
    name="turbo",
    family="merge",
    summary="merge similar tokens, but not those that CLS attends to",
    formula="edge = cos(k_a,k_b) − 30·alpha·beta^|gamma−l| · mean_h A[h,cls,a]; ToMe's merge",
    reference="Ju et al., Turbo: Informativity-Driven Acceleration Plug-In for Vision-Language "
    "Models, ECCV 2024",
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
)

MCTF = Preset(
    name="mctf",
    family="merge",
    summary="merge tokens that are alike, matter little and stand for few, both ways",
    formula="edge = ((cos+1)/2) · (â_i â_j)^(1/20) · (ŝ_i ŝ_j)^(1/40), â = 1/mean_{h,q} A, ŝ = "
    "1/size, over their maxima; r//2 pairs A→B, the rest B→A; weights a·s",
    reference="Lee et al., Multi-criteria Token Fusion with One-step-ahead Attention for Efficient "
    "Vision Transformers, CVPR 2024",
    scheduler=constant(half=True),
    score=Spec("colsum", {"queries": "all", "agg": "mean"}),
    reducer=Spec("merge", {"criteria": "mctf", "bidirectional": True, "combine": "score"}),
    parameters={"r": count("tokens merged per block (paper: 16 for DeiT-S)")},
    budget=("r",),
    published="r=16: DeiT-S 79.2 % without training",
    note="this block's attention in place of the next one's; computes Q·K^T a second time",
)

MERGING: tuple[Preset, ...] = (TOME, PITOME, TOFU, TURBO, MCTF)
