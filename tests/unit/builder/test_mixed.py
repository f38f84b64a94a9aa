"""Mixed precision through every command, and what its ranges rest on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.api.bench import bench
from tcompile.api.profile import profile
from tcompile.api.verify import verify
from tcompile.artifact.directory import load_artifact
from tcompile.artifact.manifest import Manifest
from tcompile.core.errors import UsageError
from tests.support.tiny_vit import VitSpec, build_vit, random_weights

SPEC = VitSpec(image=32, depth=2)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A model with a massive channel, of any batch."""
    weights = random_weights(SPEC, 0)
    weights["blocks.0.mlp.fc2.bias"][7] = 9e4
    onnx.save(build_vit(SPEC, weights, batch=None), str(tmp_path / "vit.onnx"))
    return tmp_path / "vit.onnx"


def built(path: Path, **asked: object) -> tuple[Path, Manifest]:
    asked = {"target": "jetson-orin", "keep": 0.6, "method": "tome", **asked}
    folder = pipeline.build(path, precision="mixed", output=path.parent / "out", **asked)  # type: ignore[arg-type]
    return folder, load_artifact(folder).manifest


def said(manifest: Manifest) -> str:
    (note,) = [n for n in manifest.notes if n.startswith("mixed: ")]
    return note


@pytest.mark.parametrize("form", ["native", "plugin"])
def test_token_ops_in_either_form(wide: Path, form: str) -> None:
    folder, manifest = built(wide, token_ops=form)
    assert (manifest.precision, manifest.fault) == ("mixed", None)
    assert "nodes stay in fp32" in said(manifest)
    found = verify(folder, against=wide)
    assert found.passed, [c for c in found.checks if c.outcome == "failed"]
    assert "fp32 reduced graph" in bench(folder, against=wide, rounds=5).note


def test_the_dense_model(wide: Path) -> None:
    _, manifest = built(wide, keep=1.0)
    assert manifest.fault is None
    assert "nodes stay in fp32" in said(manifest)


def test_own_images_are_shared_out(wide: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "x.npz", image=rows)
    _, manifest = built(wide, calibration=tmp_path / "x.npz")
    assert "on 6 of 8 samples" in said(manifest)
    assert "your own images" not in said(manifest)
    assert manifest.fidelity is not None
    assert "that ranges were not taken from" in manifest.fidelity.data


def test_it_is_planned_as_fp16(wide: Path) -> None:
    found = pipeline.price(wide, target="rtx-4090", precision="mixed", keep=0.6, method="tome")
    assert found.to_json()["precision"] == "mixed"
    other = pipeline.price(wide, target="rtx-4090", precision="fp16", keep=0.6, method="tome")
    assert found.schedule == other.schedule
    with pytest.raises(UsageError, match="not profiled in mixed"):
        profile(wide, target="rtx-4090", precision="mixed", modelled=True)
