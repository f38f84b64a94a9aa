"""Presets that learn their counts from images (`--calibration`)."""

from __future__ import annotations

from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Spec
from tcompile.methods.presets.base import Preset
from tcompile.methods.presets.common import CLS, TOPK, part
from tcompile.methods.schedulers import fit, greedy, sigmoid

_PAID = Spec("cls", {"agg": "max"})
_RECEIVED = Spec("colsum", {"queries": "all", "agg": "max", "heads": "after"})
_SEARCH = (
    "Zhao et al., Accelerating Multimodal Large Language Models by Searching Optimal Vision Token "
    "Reduction, CVPR 2025"
)


def _share(meaning: str) -> Parameter:
    return Parameter(float, None, meaning, least=0.0, most=1.0)


FITPRUNE = Preset(
    name="fitprune",
    family="calibrated",
    summary="let as many tokens leave each block as cost no more than a share of its attention",
    formula="score_j = max_h A[h,cls,j] · max_h sum_q A[h,q,j]; in block l as many leave as lose "
    "at most alpha of the sum of either factor, mean over images; alpha by bisection",
    reference="Ye et al., Fit and Prune: Fast and Training-free Visual Token Pruning for "
    "Multi-modal Large Language Models, AAAI 2025",
    scheduler=fit(_PAID, _RECEIVED),
    score=Spec("product", {"terms": [part(_PAID, power=1.0), part(_RECEIVED, power=1.0)]}),
    reducer=TOPK,
    parameters={"alpha": _share("of the attention that may be lost in a block")},
    budget=("alpha",),
    needs=("calibration",),
    note="the encoder's CLS row in place of a language model's text; every block computes Q·K^T a "
    "second time",
)

G_SEARCH = Preset(
    name="g-search",
    family="calibrated",
    summary="from the first block on, keep as few tokens as lose no more than a tolerance",
    formula="score_j = mean_h A[h,cls,j]; in block l the least K whose tokens receive "
    "1 − tolerance of what those still there receive, mean over images",
    reference=_SEARCH + " (G-Search)",
    scheduler=greedy(CLS),
    score=CLS,
    reducer=TOPK,
    parameters={"tolerance": _share("of what the tokens still there receive, lost in a block")},
    budget=("tolerance",),
    needs=("calibration",),
    note="attention lost stands for the loss of the task's metric",
)

P_SIGMOID = Preset(
    name="p-sigmoid",
    family="calibrated",
    summary="let tokens leave along a sigmoid over the blocks, fitted on images",
    formula="score_j = mean_h A[h,cls,j]; left after block l: T − (T − K)·s((l+1)/L), s a sigmoid "
    "with s(0) = 0, s(1) = 1; its middle and width lose the least attention among those that "
    "keep no more tokens in the mean than a straight line",
    reference=_SEARCH + " (P-Sigmoid)",
    scheduler=sigmoid(CLS),
    score=CLS,
    reducer=TOPK,
    parameters={
        "middle": _share("where half has left, as a share of the depth; default searched"),
        "width": Parameter(float, None, "of the sigmoid; default searched", least=0.01, most=10.0),
    },
    needs=("calibration",),
    note="a grid of 9 middles and 5 widths in place of Bayesian optimisation",
)

CALIBRATED: tuple[Preset, ...] = (FITPRUNE, G_SEARCH, P_SIGMOID)
