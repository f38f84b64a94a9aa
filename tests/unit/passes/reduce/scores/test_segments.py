"""Frames that attend apart score their own tokens; windows give no history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Reduction, Schedule, Spec
from tcompile.passes.reduce import reduce_graph
from tcompile.passes.stages import Analysed
from tests.oracles.exports import exported
from tests.support.zoo_matrix import BY_ID, Variant
from tests.unit.passes.reduce.scores import graphs

QUICK = Variant("torchscript", "eager", 17, 1)
TERMS: list[dict[str, Any]] = [
    {"score": {"name": name, **more}, "norm": "l2"}
    for name, more in (
        ("attn", {}),
        ("rowmean", {}),
        ("value_mass", {}),
        ("energy", {}),
        ("norm", {"of": "k"}),
        ("dup", {}),
        ("static", {"pattern": "random"}),
    )
]


@pytest.fixture(scope="module")
def video(cache: Path) -> Analysed:
    return pipeline.read(exported(BY_ID["hf-qwen2-vl-video"], QUICK, cache))


def reduced(read: Analysed, site: str, score: Spec, reducer: str) -> Any:
    keep = read.analysis.shape.patches // 2
    steps = (Reduction(site, score, Spec(reducer), keep),)
    return reduce_graph(
        read.graph, read.analysis, Schedule("custom", read.analysis.shape, steps)
    ).graph


@pytest.mark.parametrize(
    "score",
    [Spec("static", {"pattern": "random"}), Spec("sum", {"terms": TERMS}), Spec("colsum")],
    ids=lambda s: s.name,
)
def test_scores_of_frames(video: Analysed, score: Spec) -> None:
    for site, reducer in (("block:0", "topk"), ("around:1", "bypass")):
        made = reduced(video, site, score, reducer)
        names = [str(o.name) for o in made.outputs]
        pixels = made.inputs[0]
        x = np.random.default_rng(0).normal(size=pixels.shape).astype(np.float32)
        for name, found in zip(names, graphs._run(made, names, x), strict=True):
            assert np.isfinite(found).all(), name
            if name == "token_index":
                space = video.analysis.space
                assert space.grouping is not None
                each = space.patches // space.grouping.members // space.segments
                counts = np.bincount(found.reshape(-1) // each, minlength=space.segments)
                assert set(counts.tolist()) == {each // 2}


def test_windows_give_no_history(cache: Path) -> None:
    read = pipeline.read(exported(BY_ID["hf-qwen2.5-vl"], QUICK, cache))
    whole = [b.index for b in read.analysis.blocks if not b.window]
    with pytest.raises(UsageError, match="not over the same tokens"):
        reduced(read, f"around:{whole[-1]}", Spec("colsum", {"cumulative": True}), "bypass")
