"""Every preset's schedule is one that the checks of the reduce pass let through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcompile.core.schedule import Spec
from tcompile.methods.composition import compose
from tcompile.methods.presets import PRESETS, Preset
from tcompile.passes.reduce.check import check_schedule
from tcompile.passes.stages import Analysed
from tcompile.pipeline import read
from tcompile.planning.constraints import site_constraints
from tests.support.tiny_vit import VitSpec, save_tiny_vit

SPECS = (
    VitSpec(image=56, patch=8, depth=6, pool="none"),
    VitSpec(image=64, patch=8, depth=4, prefix=5),
    VitSpec(image=64, patch=8, depth=3, prefix=0, pool="avg"),
)
#: Those that need no video.
OF_IMAGES = [m for m in PRESETS if "frames" not in m.needs]


@pytest.fixture(scope="module", params=range(len(SPECS)), ids=["49", "64+5", "64"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    path: Path = tmp_path_factory.mktemp("presets") / "vit.onnx"
    return read(save_tiny_vit(path, SPECS[request.param]))


@pytest.mark.parametrize("preset", OF_IMAGES, ids=lambda m: m.name)
def test_every_preset_fits(preset: Preset, model: Analysed) -> None:
    shape = model.analysis.shape

    def observe(scores: list[Spec]) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        return [rng.dirichlet(np.ones(shape.patches), size=(shape.blocks, 2)) for _ in scores]

    text = f"{preset.name}:head={__file__}" if preset.required else preset.name
    for keep in ("0.8", "0.55", "0.3"):
        given = observe if preset.scheduler.observes else None
        made = compose(
            text, shape, model.analysis.has_cls, keep, site_constraints(model.analysis), given
        )
        check_schedule(model.analysis, made)
        assert made.reductions or preset.name == "llava-zip"
