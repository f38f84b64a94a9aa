"""Every score in one TensorRT-RTX engine: no attention is opened, not even by whole matrices that
are computed beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from tcompile import pipeline
from tcompile.core.schedule import Reduction, Schedule, Spec
from tcompile.passes.lower import lower
from tcompile.targets import load_target
from tcompile.targets.backends import emit
from tcompile.targets.backends.base import FusedAttention
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import VitSpec, save_tiny_vit

pytest.importorskip("tensorrt_rtx")


def of(*scores: tuple[str, dict[str, Any]]) -> Spec:
    terms = [{"score": {"name": name, **more}, "norm": "softmax"} for name, more in scores]
    return Spec("sum", {"terms": terms})


FEW_ROWS = of(
    ("cls", {"value": "l2", "weight": "context"}),
    ("cls", {"agg": "rms", "heads": "joined"}),
    ("cls", {"value": "l1", "softmax": "pre"}),
    ("colsum", {"queries": "strided"}),
    ("norm", {"of": "k"}),
    ("norm", {"of": "v", "p": 1}),
    ("value_mass", {}),
    ("rowmean", {}),
    ("energy", {}),
    ("energy", {"form": "paper", "metric": "x"}),
    ("dup", {}),
    ("dup", {"reference": "window"}),
    ("static", {"pattern": "radial"}),
    ("product", {"terms": [{"score": {"name": "norm"}, "power": 0.5}]}),
    ("window_penalty", {"score": {"name": "norm"}}),
)
MATRICES = of(
    ("cls", {"source": "ema"}),
    ("colsum", {"agg": "max"}),
    ("colsum", {"queries": "all", "diagonal": True}),
    ("pagerank", {}),
)


def test_all_attention_stays_fused(tmp_path: Path) -> None:
    vit = VitSpec(image=64, patch=8, width=64, heads=2, depth=3)
    read = pipeline.read(save_tiny_vit(tmp_path / "vit.onnx", vit, batch=None))
    steps = (
        Reduction("attn:1", FEW_ROWS, Spec("topk"), 48),
        Reduction("attn:2", MATRICES, Spec("topk"), 32),
    )
    made = pipeline.apply_schedule(read, Schedule("custom", read.analysis.shape, steps), "reduced")
    target = load_target("rtx-4090")
    lowered = lower(made.graph, target=target, precision="fp16", fp32_nodes=made.fp32_nodes)
    onnx.save(to_onnx(lowered), tmp_path / "model.onnx")
    emitted = emit(
        tmp_path / "model.onnx", tmp_path, target=target, precision="fp16", batch=(1, 2, 4)
    )
    assert emitted.fused == FusedAttention(3, 3)
