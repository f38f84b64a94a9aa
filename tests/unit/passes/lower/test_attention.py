"""The `Attention` operator in plain operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tcompile.core.errors import ModelError
from tcompile.passes.lower import decompose_attention, decompose_rms_norm
from tcompile.passes.lower.types import complete
from tests.support.onnx_models import to_onnx
from tests.unit.passes.lower.blocks import attention_blocks, difference, parse, run, save

#: Another order of fp32 operations: a few units in the last place after three blocks.
SAME = 4e-6


def ops(graph: gs.Graph) -> set[str]:
    return {node.op for node in graph.nodes}


@pytest.mark.parametrize("mask", [None, "full"])
def test_four_dims_with_and_without_mask(tmp_path: Path, mask: str | None) -> None:
    model = attention_blocks(operator=True, mask=mask, batch="batch")  # type: ignore[arg-type]
    graph = gs.import_onnx(model)
    replaced = decompose_attention(graph)
    assert set(replaced) == {f"block{i}/attention" for i in range(3)}
    assert "block0/attention/Softmax" in replaced["block0/attention"]
    assert "Attention" not in ops(graph)
    complete(graph)
    expected = run(save(model, tmp_path, "operator.onnx"))
    assert difference(run(save(to_onnx(graph), tmp_path)), expected) < SAME


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_three_dims_with_a_runtime_mask(tmp_path: Path, kind: str) -> None:
    model = parse(
        f"""
        <ir_version: 11, opset_import: ["":23]>
        g (float[B,17,64] x, float[B,17,17] bias) => (float[B,17,64] y)
        <float zero = {{0.0}}, int64[1] one = {{1}}>
        {{
          positive = Greater(bias, zero)
          wide = Cast<to={9 if kind == "bool" else 1}>({"positive" if kind == "bool" else "bias"})
          mask = Unsqueeze(wide, one)
          [att] y = Attention<q_num_heads=2, kv_num_heads=2, scale=0.3>(x, x, x, mask)
        }}
        """
    )
    graph = gs.import_onnx(model)
    decompose_attention(graph)
    complete(graph)
    expected = run(save(model, tmp_path, "operator.onnx"))
    assert difference(run(save(to_onnx(graph), tmp_path)), expected) < SAME


def test_only_what_is_wanted() -> None:
    graph = gs.import_onnx(attention_blocks(operator=True))
    assert set(decompose_attention(graph, lambda n: n.name.startswith("block1"))) == {
        "block1/attention"
    }
    assert sum(node.op == "Attention" for node in graph.nodes) == 2


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("y = Attention<is_causal=1>(q, k, k)", "is_causal=1"),
        ("y = Attention<softcap=5.0>(q, k, k)", "softcap"),
        ("y, a, b, c = Attention(q, k, k)", "more than one output"),
        ("y = Attention(q, one, one)", "2 heads of queries share 1 heads"),
    ],
)
def test_what_cannot_be_spelled_is_refused(call: str, reason: str) -> None:
    model = parse(
        f"""
        <ir_version: 11, opset_import: ["":23]>
        g (float[1,2,5,8] q, float[1,2,5,8] k, float[1,1,5,8] one) => (float[1,2,5,8] y)
        {{ [att] {call} }}
        """
    )
    with pytest.raises(ModelError, match=reason) as error:
        decompose_attention(gs.import_onnx(model))
    assert "att" in error.value.where


def test_rms_norm(tmp_path: Path) -> None:
    model = parse(
        """
        <ir_version: 11, opset_import: ["":23]>
        g (float[B,5,64] x, float[64] w) => (float[B,5,64] y)
        { [rms] y = RMSNormalization<epsilon=0.000001>(x, w) }
        """
    )
    # ONNX Runtime's random feed for `w` has the right shape too.
    graph = gs.import_onnx(model)
    assert decompose_rms_norm(graph)["rms"] >= {"rms/Root", "rms/Output"}
    complete(graph)
    assert "RMSNormalization" not in ops(graph)
    expected = run(save(model, tmp_path, "operator.onnx"))
    assert difference(run(save(to_onnx(graph), tmp_path)), expected) < np.float32(SAME)
