"""Acceptance: what a build for the CPU writes is plain ONNX, for readers that know no functions.

OpenVINO rejects model-local functions. Every preset's file, in which token ops are inlined, gives
there what it gives in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcompile import pipeline
from tcompile.core.save import save
from tcompile.methods.presets import PRESETS, Preset
from tcompile.passes.lower import lower
from tcompile.targets import load_target
from tcompile.targets.backends.ort import OrtRunner
from tests.support.preset_models import analysed, scheduled, some_images

openvino = pytest.importorskip("openvino")

Arrays = dict[str, np.ndarray[Any, Any]]
#: Share of the patches that presets come down to, the first that they can.
KEEPS = ("0.5", "0.75", "0.25", "0.6", "0.9")


def in_openvino(path: Path, feed: Arrays, names: Iterable[str]) -> Arrays:
    """Outputs by name, in fp32."""
    core = openvino.Core()
    core.set_property({"INFERENCE_NUM_THREADS": 1})
    compiled = core.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(feed)
    # An output may be known by several names.
    return {name: np.asarray(found[compiled.output(name)]) for name in names}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_every_presets_file_runs_in_openvino(preset: Preset, tmp_path: Path) -> None:
    kind, schedule = scheduled(preset, "image", KEEPS)
    spec, model = analysed(kind)
    reduced = pipeline.apply_schedule(model, schedule)
    graph = lower(
        reduced.graph, target=load_target("cpu"), precision="fp32", fp32_nodes=reduced.fp32_nodes
    )
    path = tmp_path / "model.onnx"
    save(graph, path, reduced.metadata)
    feed = {"image": some_images(spec, 2)}
    want = OrtRunner(path, threads=1).run(feed)
    have = in_openvino(path, feed, want)
    for name, values in want.items():
        if values.dtype.kind == "f":
            error = np.abs(values - have[name]).max() / max(np.abs(values).max(), 1e-6)
            assert error < 1e-4, name
        else:
            assert np.array_equal(values, have[name]), name
