"""Acceptance: models whose values leave fp16's range are right in mixed precision.

Random weights, with magnitudes planted where trained models of these families have them: massive
activations of a few tokens in one channel (DINOv3's class token and registers), a stream that grows
with depth (Gemma 3's SigLIP tower), a hidden layer (SigLIP 2).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from torch import nn

from tcompile import pipeline
from tcompile.artifact.directory import load_artifact
from tcompile.builder.on_images import looking_at
from tcompile.core.errors import FailedBuildError
from tcompile.core.progress import silent
from tcompile.core.save import save
from tcompile.models import export, load_source
from tcompile.passes.lower import lower
from tcompile.planning.request import Request
from tcompile.runtime.samples import feed
from tcompile.runtime.scenes import scenes_and_noise
from tcompile.runtime.signature import signature
from tcompile.targets import load_target
from tcompile.targets.backends.ort import OrtRunner
from tcompile.verify.lowered import _compare
from tcompile.verify.owners import Owners
from tcompile.verify.pair import write_pair
from tests.oracles.exports import once
from tests.oracles.weights import stir
from tests.support.zoo_matrix import BY_ID

#: What is asked of each: tokens leave by merging and by dropping.
METHODS = {"timm-dinov3": "tome", "hf-siglip-vision": "topk", "timm-siglip": "tome"}
_HALVES = (np.dtype(np.float16), np.dtype(np.float32))


def _tokens(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith(("cls_token", "reg_token", "register_tokens")):
            parameter[..., 5] = 9e4


def _stream(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith("mlp.fc2.bias"):
            parameter[7] = 6e4


def _hidden(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith("blocks.1.mlp.fc1.weight"):
            parameter *= 1e5
        if name.endswith("blocks.1.mlp.fc2.weight"):
            parameter *= 1e-5


PLANTED: dict[str, Callable[[nn.Module], None]] = {
    "timm-dinov3": _tokens,
    "hf-siglip-vision": _stream,
    "timm-siglip": _hidden,
}


@pytest.fixture(params=PLANTED)
def planted(request: pytest.FixtureRequest, cache: Path) -> tuple[Path, str]:
    """An export with planted magnitudes, and its method."""
    case = BY_ID[request.param]

    def write(path: Path) -> None:
        loaded = load_source(
            case.source, random_weights=True, image_size=case.image_size, overrides=case.overrides
        )
        stir(loaded.module, seed=1)
        with torch.no_grad():
            PLANTED[case.id](loaded.module)
        export(loaded, path, exporter="torchscript", batch=1)

    return once(cache / f"planted-{case.id}.onnx", write), METHODS[case.id]


def test_fp16_does_not_hold_them(planted: tuple[Path, str], tmp_path: Path) -> None:
    path, method = planted
    asked = {"target": "jetson-orin", "keep": 0.6, "method": method, "output": tmp_path / "out"}
    with pytest.raises(FailedBuildError, match="in fp16 the model does not compute") as raised:
        pipeline.build(path, **asked)  # type: ignore[arg-type]
    assert "--precision mixed" in raised.value.hint


def test_they_are_right_and_finite(planted: tuple[Path, str], tmp_path: Path) -> None:
    path, method = planted
    model, request = pipeline.read(path), Request(keep=0.6, method=method)
    reduced = pipeline.reduce(path, method=method, keep=0.6)
    target = load_target("rtx-4090")
    wide = looking_at(model, request, target, "mixed", reduced.metadata, silent).wide
    lowered = lower(
        reduced.graph, target=target, precision="mixed", fp32_nodes=reduced.fp32_nodes, wide=wide
    )
    assert wide.nodes
    assert len(wide.nodes) < 0.5 * wide.of
    images = scenes_and_noise(signature(path))
    _all_finite(lowered, images.arrays, tmp_path / "all.onnx")
    pair = write_pair(reduced.graph, lowered, tmp_path, Owners(path, reduced.dense))
    found, _ = _compare(pair, images)
    assert min(how.cosine for each in found.values() for how in each) >= 0.9995


def _all_finite(lowered: gs.Graph, arrays: dict[str, np.ndarray], path: Path) -> None:  # type: ignore[type-arg]
    """Every tensor, in a graph that is run as it is written: fusing may hide what overflows."""
    graph = lowered.copy()
    made = [t for node in graph.nodes for t in node.outputs if t.dtype in _HALVES]
    graph.outputs = [t for t in made if not t.is_empty()]
    save(graph, path)
    runner = OrtRunner(path, optimize=False)
    one = {name: array[:1] for name, array in arrays.items()}
    for name, values in runner.run(feed(runner.inputs, one)).items():
        assert np.isfinite(values).all(), name


@pytest.mark.parametrize("target", ["rtx-4090", "t4"])
def test_engines_fuse_every_attention(
    planted: tuple[Path, str], target: str, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    path, method = planted
    built = pipeline.build(
        path, target=target, precision="mixed", keep=0.6, method=method, output=tmp_path / "out"
    )
    manifest = load_artifact(built).manifest
    assert (manifest.precision, manifest.fault) == ("mixed", None)
    assert manifest.fused_attention is not None
    assert manifest.fused_attention.ok, manifest.fused_attention
    stored = onnx.load(built / "model.onnx").graph.initializer
    half = [t for t in stored if t.data_type == onnx.TensorProto.FLOAT16 and len(t.dims) == 2]
    assert len(half) >= 8
