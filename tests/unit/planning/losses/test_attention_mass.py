"""Losses by attention mass, against the probabilities of the dense model, image by image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile.core.errors import UsageError
from tcompile.core.site import SiteName
from tcompile.methods.context import SiteRule
from tcompile.passes.stages import Analysed
from tcompile.pipeline import read
from tcompile.planning.losses.attention_mass import attention_losses
from tcompile.planning.losses.base import SiteLosses
from tcompile.runtime.samples import Samples, samples_for
from tcompile.runtime.signature import signature
from tcompile.targets.backends.ort import OrtRunner
from tests.support.onnx_models import to_onnx
from tests.support.planted import method as method_on
from tests.support.tiny_vit import VitSpec, save_tiny_vit

SITES = ["attn:0", "block:1", "attn:2", "output"]
COUNTS = [3, 9, 14]


def make(folder: Path, **changes: object) -> tuple[Analysed, Samples]:
    fields = {"image": 32, "patch": 8, "width": 32, "heads": 2, "depth": 3, **changes}
    path = save_tiny_vit(folder / "vit.onnx", VitSpec(**fields), batch=None)  # type: ignore[arg-type]
    return read(path), samples_for(signature(path), count=4)


def losses(model: Analysed, samples: Samples, method: str) -> SiteLosses:
    sites = [SiteRule(SiteName(name)) for name in SITES]
    return attention_losses(model.graph, method_on(model, method), sites, COUNTS, samples)


def attentions(model: Analysed, samples: Samples) -> list[np.ndarray]:
    """The probabilities [B, H, N, N] of every block, as further outputs of the model."""
    graph = model.graph.copy()
    soft = [n.outputs[0] for n in graph.nodes if n.op == "Softmax"]
    names = [t.name for t in soft]
    graph.outputs += soft
    path = Path(model.source).with_name("attention.onnx")
    onnx.save(to_onnx(graph), path)
    found = OrtRunner(path).run({"image": samples.arrays["image"]})
    return [found[n] for n in names]


@pytest.mark.parametrize(
    ("pool", "prefix", "method"),
    [("cls", 1, "topk"), ("cls", 1, "tome"), ("none", 1, "topk"), ("cls", 1, "spatten")],
)
def test_what_leaves_would_have_been_paid(
    tmp_path: Path, pool: str, prefix: int, method: str
) -> None:
    model, samples = make(tmp_path, pool=pool, prefix=prefix)
    found = losses(model, samples, method)
    paid = []
    for attention in attentions(model, samples):
        row = attention.mean(axis=1)[:, 0, 1:].astype(float)  # of CLS, mean over heads
        paid.append(row / row.sum(axis=1, keepdims=True))
    reads = paid[-1] if pool == "none" else np.zeros_like(paid[-1])
    for site, block in zip(SITES, (0, 1, 2, 2), strict=True):
        for count, value in zip(COUNTS, found.at[site], strict=False):
            lost = []
            for image in range(4):
                leave = np.argsort(paid[block][image])[: 17 - count]
                later = sum((p[image] for p in paid[block + 1 :]), reads[image])
                lost.append(later[leave].sum() / 3)
            assert value == pytest.approx(np.mean(lost), abs=1e-5)
    assert found.unit == "share of attention mass"
    assert all(0 <= v <= 1 for values in found.at.values() for v in values)


def test_without_cls_patches_pay(tmp_path: Path) -> None:
    model, samples = make(tmp_path, pool="mean", prefix=0)
    found = losses(model, samples, "topk")
    assert any("attn" in note for note in found.notes)
    assert found.at["output"][0] > 0
    assert found.at["attn:0"][0] > found.at["attn:2"][0]


def test_a_count_is_needed(tmp_path: Path) -> None:
    model, samples = make(tmp_path)
    one = method_on(model, "topk")
    with pytest.raises(UsageError, match="no count"):
        attention_losses(model.graph, one, one.sites, [17], samples)
