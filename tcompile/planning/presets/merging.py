"""Presets that merge tokens into others."""

from __future__ import annotations

from fractions import Fraction

from tcompile.planning.context import Step
from tcompile.planning.parameters import Parameter
from tcompile.planning.presets.base import Preset
from tcompile.planning.presets.common import PROP_ATTN, count
from tcompile.planning.schedule import Spec
from tcompile.planning.schedulers import constant


def _merge(step: Step) -> Spec:
    return Spec("merge", {} if step.values["prop_attn"] else {"prop_attn": False})


TOME = Preset(
    name="tome",
    family="merge",
    summary="merge similar tokens in every block",
    formula="metric = mean_h K; even positions match odd ones by cosine, the r best pairs merge "
    "into their size-weighted mean; later logits += log size; pooling weighs by size",
    reference="Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023",
    scheduler=constant(half=True),
    score=None,
    reducer=_merge,
    parameters={
        "r": count("tokens merged per block (paper: 8 to 16 for ViT-B)"),
        "inflect": Parameter(Fraction, Fraction(0), "-1: r decreases to 0 over the blocks (the "
                             "paper's decreasing schedule), 1: it grows from 0", least=-1, most=1),
        "prop_attn": PROP_ATTN,
    },
    budget=("r",),
    published="ViT-S r=13, ViT-B r=13, ViT-L r=7, ViT-L@384 r=23, ViT-H@518 r=40; prop_attn off "
    "for MAE weights used off the shelf",
)  # fmt: skip

MERGING: tuple[Preset, ...] = (TOME,)
