"""A score, a reducer and a preset of one's own for tcompile; `pip install .` is all it takes.

docs/extending.md explains it, tests/acceptance/test_extensions.py runs it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tcompile import algebra


def contrast(inputs: algebra.ScoreInput) -> algebra.Tensor:
    """score_j = max_c x_jc − min_c x_jc: [B, T]. Reads no attention, so that stays fused."""
    b, x = inputs.builder, inputs.of_patches(inputs.x)
    return b.op("Sub", b.reduce("Max", x, [2]), b.reduce("Min", x, [2]))


SCORE = algebra.Score("contrast", contrast, attention=False)


def lift(inputs: algebra.ReducerInput) -> tuple[algebra.Tensor, algebra.TokenState]:
    """The K best stay, each with a share of what was there: x_S' = x_S + alpha · mean_j x_j."""
    b, patches = inputs.builder, inputs.of_patches(inputs.x)
    alpha = b.const(inputs.parameters["alpha"], np.float32)
    share = b.op("Mul", b.reduce("Mean", patches, [1], keepdims=1), alpha)
    lifted = inputs.joined(b.op("Add", patches, share), fp32=False)
    return replace(inputs, x=lifted).reduce(algebra.Spec("topk"))


ALPHA = algebra.Parameter(float, 0.1, "share of the mean that is added", least=0, most=1)
REDUCER = algebra.Reducer("lift", lift, {"alpha": ALPHA})


def lift_by(step: algebra.Step) -> algebra.Spec:
    """The reducer with the preset's alpha."""
    return algebra.Spec("lift", {"alpha": step.values["alpha"]})


PRESET = algebra.Preset(
    name="lifted",
    family="prune",
    summary="keep the tokens of the highest contrast, lifted by the mean, once",
    formula="score_j = max_c x_jc - min_c x_jc; x_S' = x_S + alpha·mean_j x_j",
    reference="an example, published nowhere",
    scheduler=algebra.schedulers.single(),
    score=algebra.Spec("contrast"),
    reducer=lift_by,
    parameters={"alpha": ALPHA},
)
