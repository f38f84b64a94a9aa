"""Control baselines: what stays does not depend on the image."""

from __future__ import annotations

from tcompile.core.parameters import Parameter
from tcompile.core.schedule import Spec
from tcompile.methods.context import Step
from tcompile.methods.presets.base import Preset
from tcompile.methods.presets.common import TOPK, rate
from tcompile.methods.schedulers import single, stages

_HAURUM = (
    "Haurum et al., Which Tokens to Use? Investigating Token Reduction in Vision Transformers, "
    "ICCVW 2023"
)

STRIDED = Preset(
    name="strided",
    family="static",
    summary="keep evenly spread tokens, the same for every image",
    formula="K patches at floor((i + 1/2)·T/K)",
    reference=_HAURUM,
    scheduler=single(),
    score=lambda step: Spec("static", {"pattern": "strided", "keep": step.keep}),
    reducer=TOPK,
    note="a control: indices are constants",
)


def _radial(step: Step) -> Spec:
    return Spec("static", {"pattern": "radial", "norm": step.values["norm"]})


RADIAL = Preset(
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
)

RANDOM = Preset(
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
)

STATIC: tuple[Preset, ...] = (STRIDED, RADIAL, RANDOM)
