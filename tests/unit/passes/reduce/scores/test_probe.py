"""The probe's attention, at any site, against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.core.errors import UsageError
from tcompile.core.schedule import Spec
from tcompile.models.onnx_vit import (
    GraphWriter,
    VitSpec,
    patch_tokens,
    prefix_tokens,
    random_weights,
)
from tcompile.passes.reduce import reduce_graph
from tests.unit.passes.reduce.scores import graphs
from tests.unit.passes.reduce.scores.graphs import Array, close, images, schedule, scored, softmax

PROBE = Spec("probe")


def with_pooling_head(spec: VitSpec, weights: dict[str, Array]) -> onnx.ModelProto:
    """A ViT whose tokens a learned probe pools, as SigLIP's do."""
    w = GraphWriter(weights)
    x = prefix_tokens(w, spec, patch_tokens(w, spec, "image"), None)
    x = w.op("Add", x, w.weight("pos_embed"))
    for i in range(spec.depth):
        x = w.block(x, f"blocks.{i}", spec.tokens, spec.width, spec.heads)
    x = w.layer_norm(x, "norm")
    size = spec.width // spec.heads

    def by_head(t: str, perm: list[int]) -> str:
        split = w.op("Reshape", t, w.const([0, spec.tokens, spec.heads, size]))
        return w.op("Transpose", split, perm=perm)

    logits = w.op("MatMul", w.weight("probe"), by_head(w.linear(x, "key"), [0, 2, 3, 1]))
    mixed = w.op(
        "MatMul", w.op("Softmax", logits, axis=-1), by_head(w.linear(x, "value"), [0, 2, 1, 3])
    )
    flat = w.op("Reshape", w.op("Transpose", mixed, perm=[0, 2, 1, 3]), w.const([-1, spec.width]))
    return w.model(spec.image, {"pooled": (flat, ["batch", spec.width])})


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("site", ["attn:1", "block:0", "output"])
def test_probe(tmp_path: Path, prefix: int, site: str) -> None:
    spec, rng = VitSpec(depth=2, prefix=prefix), np.random.default_rng(0)
    weights = random_weights(spec)
    weights["probe"] = rng.normal(size=(1, spec.heads, 1, 16)).astype(np.float32)
    for name in ("key", "value"):
        weights |= {
            f"{name}.weight": rng.normal(size=(32, 32)).astype(np.float32),
            f"{name}.bias": rng.normal(size=32).astype(np.float32),
        }
    onnx.save(with_pooling_head(spec, weights), str(tmp_path / "m.onnx"))
    read = pipeline.read(tmp_path / "m.onnx")
    where = read.analysis.site(site)
    assert where is not None
    steps = [(site, PROBE, "topk", 5)]
    made = reduce_graph(read.graph, read.analysis, schedule(read, steps)).graph
    scope = f"tcompile/{site.replace(':', '_')}/topk/TcTopKTokens"
    score = next(n for n in made.nodes if n.name == scope).inputs[0]
    pixels = images(3)
    found = graphs._run(made, [str(score.name)], pixels)[0]

    x = graphs._run(read.graph.copy(), [where.tensor], pixels)[0].astype(np.float64)
    if site != "output":
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * weights["norm.weight"] + weights["norm.bias"]
    k = (x @ weights["key.weight"].T + weights["key.bias"]).reshape(3, spec.tokens, 2, 16)
    attention = softmax(weights["probe"] @ k.transpose(0, 2, 3, 1))
    close(found, attention.mean((1, 2))[:, prefix:])


def test_without_a_probe_there_is_no_such_score() -> None:
    with pytest.raises(UsageError, match="needs a learned query"):
        scored(PROBE, images(1))
