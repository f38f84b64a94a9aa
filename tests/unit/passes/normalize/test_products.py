"""Products of two activations are MatMul; those with a weight, and mere weighted sums, stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tcompile import pipeline
from tcompile.models.onnx_vit import GraphWriter, patch_tokens, pool, prefix_tokens
from tcompile.passes.normalize import normalize
from tests.oracles.compare import infer
from tests.support.judge import judge
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import VitSpec, random_weights


def _ops(inputs: str, node: str, out: str = "float[] y") -> list[str]:
    """The operators of the normal form, which computes the same."""
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 17]> g ({inputs}) => ({out}) {{ {node} }}'
    )
    rng = np.random.default_rng(0)
    feed = {
        v.name: rng.standard_normal([d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in model.graph.input
    }
    feed = {name: value.astype(np.float32) for name, value in feed.items()}
    wanted = infer(model, feed)["y"]
    graph = normalize(model).graph
    assert np.allclose(infer(to_onnx(graph), feed)["y"], wanted, rtol=1e-4, atol=1e-5)
    return [str(n.op) for n in graph.nodes]


_QK = "float[2,5,3,4] a, float[2,6,3,4] b"
_MATRICES = {
    "bqhd,bkhd->bhqk": _QK,
    "bqhd,bkhd->bhkq": _QK,
    "bqhd,bkhd->bqkh": _QK,
    "bxyc,bzwc->bxyzw": "float[2,3,2,4] a, float[2,2,5,4] b",
    "bqhd,bkhd->bqk": _QK,
    "...qd,...kd->...qk": "float[2,3,5,4] a, float[2,3,6,4] b",
    "id,jd": "float[3,4] a, float[5,4] b",
    "qd,kd->kq": "float[5,4] a, float[6,4] b",
}


@pytest.mark.parametrize("equation", _MATRICES)
def test_an_einsum_of_matrices_is_a_matmul(equation: str) -> None:
    ops = _ops(_MATRICES[equation], f'y = Einsum <equation = "{equation}"> (a, b)')
    assert "Einsum" not in ops
    assert ops.count("MatMul") == 1


_OTHERS = {
    "bnc,bn->bc": "float[2,5,4] a, float[2,5] b",
    "bnc,bnc->bn": "float[2,5,4] a, float[2,5,4] b",
    "bnc,bnc->bnc": "float[2,5,4] a, float[2,5,4] b",
    "bii,bik->bk": "float[2,5,5] a, float[2,5,4] b",
    "bnc,bmd->bnm": "float[2,5,4] a, float[2,3,6] b",
}


@pytest.mark.parametrize("equation", _OTHERS)
def test_an_einsum_that_is_no_product_of_matrices_stays(equation: str) -> None:
    assert "Einsum" in _ops(_OTHERS[equation], f'y = Einsum <equation = "{equation}"> (a, b)')


def test_a_weighted_sum_stays() -> None:
    node = "p = Mul (a, b) y = ReduceSum <keepdims = 0> (p, k)"
    node = f"k = Constant <value = int64[1] {{1}}> () {node}"
    assert "ReduceSum" in _ops("float[2,5,4] a, float[2,5,1] b", node)


class _OneHead(GraphWriter):
    """Attention of one head of one image, [N, C], all by Gemm."""

    def attention(self, x: str, name: str, tokens: int, width: int, heads: int) -> str:
        def linear(x: str, name: str) -> str:
            weight, bias = self.weight(f"{name}.weight", transpose=True), f"{name}.bias"
            return self.op("Gemm", x, weight, self.weight(bias))

        flat = linear(self.op("Squeeze", x, self.const([0])), f"{name}.qkv")
        q = self.op("Split", flat, self.const([width] * 3), outputs=3, axis=1)
        logits = self.op("Gemm", q, f"{q}.1", transB=1, alpha=width**-0.5)
        context = self.op("Gemm", self.op("Softmax", logits, axis=-1), f"{q}.2")
        return self.op("Unsqueeze", linear(context, f"{name}.proj"), self.const([0]))


@pytest.mark.parametrize("method", ["topk:block=0", "tome", "bypass"])
def test_attention_by_gemm(method: str, tmp_path: Path) -> None:
    spec, path = VitSpec(image=24, patch=6, width=12, depth=2), tmp_path / "model.onnx"
    writer = _OneHead(random_weights(spec))
    x = prefix_tokens(writer, spec, patch_tokens(writer, spec, "image"), 1)
    x = writer.op("Add", x, writer.weight("pos_embed"))
    for i in range(spec.depth):
        x = writer.block(x, f"blocks.{i}", spec.tokens, spec.width, 1)
    logits = writer.linear(pool(writer, spec, writer.layer_norm(x, "norm")), "head")
    onnx.save(writer.model(spec.image, {"logits": (logits, [1, spec.classes])}), path)
    assert all(a.plain and a.heads == 1 for a in pipeline.read(path).analysis.attentions)
    assert judge(path, method).kind == "equal"
