"""Acceptance: a reduced 12-layer fp16 engine has all 12 attentions fused, whatever the export."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tcompile import pipeline
from tcompile.models import export, load_source

pytestmark = pytest.mark.heavy

COUNTS = {
    "topk": (0.6, [50, 50, 50, 31, *[31] * 8]),
    "evit:rate=0.7": (None, [50, 50, 50, 37, 37, 37, 28, 28, 28, 21, 21, 21]),
    "tome:r=3": (None, list(range(47, 13, -3))),
}


#: Merging, which adds the sizes to the scores, in both forms; the others with TCOMPILE_MATRIX.
BUILT = [
    (opset, method)
    for opset in (20, 23)
    for method in COUNTS
    if os.environ.get("TCOMPILE_MATRIX")
    or (opset, method) not in ((20, "evit:rate=0.7"), (23, "topk"))
]


@pytest.fixture(scope="module")
def twelve(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """timm's ViT with twelve narrow layers; opset 23 has one `Attention` op in each."""
    path = tmp_path_factory.mktemp("twelve") / "vit.onnx"
    narrow = {"depth": 12, "embed_dim": 64, "num_heads": 2, "num_classes": 10}
    loaded = load_source(
        "timm:vit_tiny_patch16_224",
        random_weights=True,
        image_size=112,
        overrides=narrow,
        perturb=True,
    )
    export(loaded, path, exporter="dynamo", opset=request.param, attention="sdpa")
    return path


@pytest.mark.parametrize(("twelve", "method"), BUILT, indirect=["twelve"])
def test_every_attention_is_fused(twelve: Path, tmp_path: Path, method: str) -> None:
    keep, counts = COUNTS[method]
    artifact = pipeline.build(
        twelve, target="rtx-4090", keep=keep, method=method, output=tmp_path / "artifact"
    )
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["fused_attention"] == {"expected": 12, "found": 12, "missing": []}
    assert [b["mlp"] for b in manifest["tokens_per_block"]] == counts
