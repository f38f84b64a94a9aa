"""What is smoothed computes the same, and loses less in int8 where single channels are far larger
than others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile.core.errors import ModelError
from tcompile.passes.lower import int8
from tcompile.passes.lower.int8 import quantized
from tcompile.runtime.metrics import cosine
from tcompile.runtime.samples import run_all
from tcompile.runtime.scenes import scenes_for
from tcompile.runtime.signature import signature
from tcompile.runtime.smoothing import smooth_file
from tests.support.tiny_vit import VitSpec, build_vit, random_weights, save_tiny_vit


@pytest.fixture
def outlying(tmp_path: Path) -> Path:
    """Norms of which one channel is 100 times as large, and matrices that make up for it."""
    spec = VitSpec()
    weights = random_weights(spec)
    for i in range(spec.depth):
        for norm, reader in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
            weights[f"blocks.{i}.{norm}.weight"][7] *= 100
            weights[f"blocks.{i}.{norm}.bias"][7] *= 100
            weights[f"blocks.{i}.{reader}.weight"][:, 7] /= 100
    onnx.save(build_vit(spec, weights, batch=None), str(tmp_path / "outlying.onnx"))
    return tmp_path / "outlying.onnx"


def test_it_computes_the_same_and_loses_less(outlying: Path, tmp_path: Path) -> None:
    samples = scenes_for(signature(outlying), count=6)
    want = next(iter(run_all(outlying, samples).values()))
    smooth = tmp_path / "smooth.onnx"
    assert smooth_file(outlying, smooth) == 2 * VitSpec().depth
    have = next(iter(run_all(smooth, samples).values()))
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4)
    lost = []
    for path in (outlying, smooth):
        onnx.save(quantized(onnx.load(path), "dynamic"), tmp_path / "int8.onnx")
        made = next(iter(run_all(tmp_path / "int8.onnx", samples).values()))
        lost.append(float((1 - cosine(want, made)).mean()))
    assert lost[1] < lost[0] / 3


def test_metadata_and_inputs_stay(tmp_path: Path) -> None:
    source = save_tiny_vit(tmp_path / "vit.onnx", batch=None)
    model = onnx.load(source)
    model.metadata_props.add(key="who", value="somebody")
    onnx.save(model, source)
    smooth_file(source, tmp_path / "smooth.onnx")
    made = onnx.load(tmp_path / "smooth.onnx")
    assert {p.key: p.value for p in made.metadata_props} == {"who": "somebody"}
    assert made.graph.input == model.graph.input
    assert made.graph.output == model.graph.output


def test_too_many_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "LIMIT", 1000)
    with pytest.raises(ModelError, match="int8 takes models below 2 GB"):
        smooth_file(save_tiny_vit(tmp_path / "vit.onnx"), tmp_path / "smooth.onnx")
    assert not (tmp_path / "smooth.onnx").exists()
