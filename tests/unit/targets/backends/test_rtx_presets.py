"""Every preset becomes a TensorRT-RTX engine, in half precision and strongly typed, and keeps each
attention fused that its scores leave alone.

By default a few presets that between them use every reducer's operators; all of them with
TCOMPILE_MATRIX=all in the environment.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.methods.presets import PRESETS, Preset
from tcompile.passes.lower import lower
from tcompile.passes.stages import Analysed, Reduced
from tcompile.planning.cost import cost_of
from tcompile.planning.method_schedule import schedule_for
from tcompile.targets import load_target
from tcompile.targets.backends import emit
from tcompile.targets.backends.base import FusedAttention
from tcompile.targets.backends.ort import OrtRunner
from tests.oracles.exports import exported
from tests.support.onnx_models import to_onnx
from tests.support.preset_models import calibration_file, method, video_vit
from tests.support.tiny_vit import VitSpec, build_vit, random_weights
from tests.support.zoo_matrix import BY_ID, variants

pytest.importorskip("tensorrt_rtx")

#: 8 × 8 patches and a CLS, wide enough for fused attention.
SPEC = VitSpec(image=64, patch=8, width=64, heads=2, depth=3)
TARGET = "rtx-4090"
#: The first that a preset can reach is taken.
KEEPS = ("0.5", "0.6", "0.75", "0.25", "0.9")
#: What the default suite builds.
FEW = (
    "pitome",
    "mctf",
    "tomesd",
    "diffrate",
    "algm",
    "atme",
    "gtp",
    "visionzip",
    "vispruner",
    "prumerge",
    "ficoco",
    "cropr",
)
WHOLE = bool(os.environ.get("TCOMPILE_MATRIX"))
CHOSEN = [p for p in PRESETS if WHOLE or p.name in FEW]


@lru_cache(maxsize=2)
def analysed(video: bool) -> Analysed:
    """The model, or one of four frames, with a free batch."""
    path = Path(mkdtemp()) / "vit.onnx"
    spec = replace(SPEC, pool="none") if video else SPEC
    weights = random_weights(spec)
    onnx.save(video_vit(spec, weights) if video else build_vit(spec, weights, batch=None), path)
    return pipeline.read(path)


def reduced_by(preset: Preset) -> Reduced:
    """At half of the tokens, or as near as it comes."""
    problems = []
    images = calibration_file(SPEC.image) if "calibration" in preset.needs else None
    for video in (False, True):
        for keep in KEEPS:
            try:
                made = schedule_for(analysed(video), keep, method(preset, SPEC), calibration=images)
            except UsageError as error:
                problems.append(str(error))
            else:
                return pipeline.apply_schedule(analysed(video), made, "reduced")
    raise AssertionError("; ".join(problems))


def engine(reduced: Reduced, folder: Path) -> FusedAttention:
    """Build it for batches of 1 to 4."""
    target = load_target(TARGET)
    lowered = lower(reduced.graph, target=target, precision="fp16", fp32_nodes=reduced.fp32_nodes)
    onnx.save(to_onnx(lowered), folder / "model.onnx")
    emitted = emit(folder / "model.onnx", folder, target=target, precision="fp16", batch=(1, 2, 4))
    assert (folder / emitted.files[0]).stat().st_size > 10_000
    assert emitted.fused is not None
    return emitted.fused


@pytest.mark.parametrize("preset", CHOSEN, ids=lambda preset: preset.name)
def test_a_preset_builds_and_leaves_attention_fused(preset: Preset, tmp_path: Path) -> None:
    reduced = reduced_by(preset)
    cost = cost_of(reduced)
    fused = engine(reduced, tmp_path)
    assert fused.expected == SPEC.depth
    opened = {site.partition(" ")[0] for site in cost.unfused}
    assert len(fused.missing) <= len(opened), (fused.missing, cost.unfused)


@pytest.mark.parametrize("preset", CHOSEN if WHOLE else CHOSEN[:2], ids=lambda preset: preset.name)
def test_each_image_of_a_batch_is_reduced_by_itself(preset: Preset, tmp_path: Path) -> None:
    onnx.save(to_onnx(reduced_by(preset).graph), tmp_path / "reduced.onnx")
    runner = OrtRunner(tmp_path / "reduced.onnx", threads=1)
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    together = runner.run({"image": images})
    for i in range(3):
        for name, value in runner.run({"image": images[i : i + 1]}).items():
            np.testing.assert_allclose(together[name][i : i + 1], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("case_id", "chosen"),
    [
        pytest.param("hf-qwen2-vl", "topk", id="groups"),
        pytest.param("hf-qwen2-vl-video", "topk", id="segments"),
        pytest.param("hf-sam", "bypass", id="around"),
    ],
)
def test_tokens_that_leave_together_or_come_back(
    case_id: str, chosen: str, cache: Path, tmp_path: Path
) -> None:
    case = BY_ID[case_id]
    (variant, *_) = [v for v in variants(case) if v.exporter == "torchscript"]
    path = exported(case, variant, cache)
    reduced = pipeline.reduce(path, target=TARGET, keep="0.5", method=chosen)
    read = pipeline.read(path).analysis.attentions
    layers = sum(attention.query_rows > 1 for attention in read)
    assert engine(reduced, tmp_path) == FusedAttention(layers, layers)
