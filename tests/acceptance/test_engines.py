"""Acceptance: engines of TensorRT-RTX in every precision, for GPUs of every generation: built, each
attention one fused kernel, and what they are made of right in ONNX Runtime.

`benchmarks.engines` builds them of real architectures.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.api.bench import bench
from tcompile.api.verify import verify
from tcompile.artifact.directory import load_artifact
from tcompile.core.errors import ModelError, UsageError
from tcompile.models.onnx_vit import VitSpec
from tcompile.passes.lower import int8
from tests.support.tiny_vit import save_tiny_vit

SPEC = VitSpec(width=64, heads=2, depth=2)
BUILDS = [
    ("t4", "mixed", "evit"),
    ("t4", "int8", "tome"),
    ("rtx-3090", "bf16", "topk"),
    ("rtx-3090", "int8", "evit"),
    ("rtx-4090", "bf16", "tome"),
    ("rtx-4090", "int8", "topk"),
    ("rtx-4090", "fp8", "evit"),
    ("rtx-5090", "mixed", "topk"),
    ("rtx-5090", "bf16", "evit"),
    ("rtx-5090", "int8", "tome"),
    ("rtx-5090", "fp8", "tome"),
    ("l4", "fp8", "topk"),
]
KINDS = {"bf16": onnx.TensorProto.BFLOAT16, "mixed": onnx.TensorProto.FLOAT16}
KINDS |= {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vit(tmp_path_factory.mktemp("engines") / "vit.onnx", SPEC)


@pytest.mark.parametrize(("target", "precision", "method"), BUILDS)
def test_engines_are_built_and_fused(
    vit: Path, tmp_path: Path, target: str, precision: str, method: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    folder = pipeline.build(
        vit, target=target, precision=precision, method=method, keep=0.5, output=tmp_path / "out"
    )
    artifact = load_artifact(folder)
    manifest = artifact.manifest
    assert (manifest.precision, manifest.fault) == (precision, None)
    fused = manifest.fused_attention
    assert fused is not None
    assert (fused.found, fused.expected) == (SPEC.depth, SPEC.depth)
    model = onnx.load(artifact.model)
    onnx.checker.check_model(model, full_check=True)
    stored = Counter[int]()
    for tensor in model.graph.initializer:
        stored[tensor.data_type] += int(np.prod(tensor.dims))
    # The matrices of blocks are in it, or most of them where 8 bits are too few for some.
    assert stored.most_common(1)[0][0] == KINDS[precision]
    assert manifest.fidelity is not None
    assert manifest.fidelity.outputs[0].cosine_mean > 0.97  # type: ignore[operator]


@pytest.mark.parametrize(
    ("target", "precision"),
    [("jetson-orin", "bf16"), ("jetson-orin", "int8"), ("jetson-agx-thor", "fp8")],
)
def test_bundles_for_a_jetson(vit: Path, tmp_path: Path, target: str, precision: str) -> None:
    asked: dict[str, Any] = {"method": "tome", "keep": 0.5, "output": tmp_path / "out"}
    folder = pipeline.build(vit, target=target, precision=precision, **asked)
    checks = {check.name: check for check in verify(folder).checks}
    assert checks["numerics"].outcome == "passed", checks["numerics"]
    manifest = load_artifact(folder).manifest
    if precision != "bf16":
        assert manifest.quantization is not None
        assert 0 < manifest.quantization.products <= 4 * SPEC.depth
        note = next(n for n in manifest.notes if n.startswith(f"{precision}:"))
        assert f"{manifest.quantization.products} products" in note
    if precision == "int8":
        # Its attention stays in fp16: the data file of TensorRT says why.
        assert "attention" not in note
    assert "fp32 reduced graph" in bench(folder, rounds=5).note


def test_mixed_is_what_8_bits_are_too_few_for(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tcompile.builder import on_images

    real = on_images.EightBits
    monkeypatch.setattr(on_images, "EightBits", lambda *given: real(*given, limit=0.0))
    with pytest.raises(ModelError, match="8 bits are too few for all of its") as raised:
        pipeline.build(
            vit, target="jetson-orin", precision="int8", keep=0.5, output=tmp_path / "out"
        )
    assert "--precision mixed" in raised.value.hint
    assert not (tmp_path / "out").exists()


def test_a_drop_cannot_be_shown_of_8_bits(vit: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"max_drop": 0.01, "calibration": images(tmp_path)}
    with pytest.raises(UsageError, match="a drop cannot be shown of TensorRT's 8 bits") as raised:
        pipeline.build(vit, target="rtx-4090", precision="int8", output=tmp_path / "o", **asked)
    assert "--precision mixed" in raised.value.hint


def images(folder: Path) -> Path:
    array = np.random.default_rng(0).normal(size=(6, 3, SPEC.image, SPEC.image))
    np.savez(folder / "images.npz", image=array.astype(np.float32))
    return folder / "images.npz"


def test_fp16_on_a_cpu_is_fp16(vit: Path, tmp_path: Path) -> None:
    """int8 and bf16 leave the graph in fp32 there, fp16 does not."""
    folder = pipeline.build(
        vit, target="cpu", precision="fp16", method="topk", keep=0.5, output=tmp_path, force=True
    )
    kinds = {t.data_type for t in onnx.load(folder / "model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds


def test_int8_on_a_gpu_has_no_limit_of_a_quantizer(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "LIMIT", 1000)
    asked: dict[str, Any] = {"precision": "int8", "keep": 0.5, "method": "topk"}
    folder = pipeline.build(vit, target="jetson-orin", output=tmp_path / "gpu", **asked)
    assert load_artifact(folder).manifest.quantization is not None
    with pytest.raises(ModelError, match="int8 takes models below 2 GB"):
        pipeline.build(vit, target="cpu", output=tmp_path / "cpu", **asked)
