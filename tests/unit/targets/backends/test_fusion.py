"""Reading which attentions are fused, without building anything."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from tcompile.targets.backends.base import FusedAttention
from tcompile.targets.backends.fusion import (
    attention_layers,
    expected_fused,
    fused_attention,
    kernels,
    unfused_notes,
)
from tests.unit.passes.lower.blocks import attention_blocks, parse

PLAN = (
    b'\x00\x01  function={ name=__myl_AddResh fqn=__myl_AddResh_0x9f args={ "a" } layers="'
    b'[ONNX Layer: block0/query]\x1f[ONNX Layer: inner | call (TcFunction)]" swap_ab=false }\n'
    b'  function={ name=_gemm_mha_v2 fqn=_gemm_mha_v2_0x9f args={ "b" } layers="'
    b"[ONNX Layer: block0/mix]\x1f[ONNX Layer: block0/softmax]\x1f"
    b'[ONNX Layer: block0/scores]" swap_ab=false }\n\xff'
)


def test_kernels_of_a_plan() -> None:
    first, second = kernels(PLAN)
    assert (first.name, first.layers) == ("__myl_AddResh", ("block0/query",))
    assert not first.fused_attention
    assert second.layers == ("block0/mix", "block0/softmax", "block0/scores")
    assert second.fused_attention


def test_a_missing_layer_is_named() -> None:
    result = fused_attention(PLAN, attention_blocks(depth=2))
    assert result == FusedAttention(expected=2, found=1, missing=("block1/softmax",))
    assert not result.ok
    assert fused_attention(PLAN, attention_blocks(depth=1)).ok


def test_a_plan_without_layer_names_is_counted() -> None:
    plan = b"function={ name=_gemm_mha_v2 fqn=x }\n" * 2
    assert fused_attention(plan, attention_blocks(depth=3)) == FusedAttention(3, 2)
    assert not fused_attention(plan, attention_blocks(depth=3)).ok


def test_attentions_of_a_graph() -> None:
    plain = attention_layers(attention_blocks(depth=2, tokens=17, mask="shared"))
    assert [(layer.node.name, layer.queries) for layer in plain] == [
        ("block0/softmax", 17),
        ("block1/softmax", 17),
    ]
    operators = attention_layers(attention_blocks(depth=1, operator=True, batch="b"))
    assert [(layer.node.name, layer.queries) for layer in operators] == [("block0/attention", 33)]


def test_other_softmaxes_are_no_attention() -> None:
    """A classifier's, a score that is averaged, and one over a product with weights."""
    model = parse(
        """
        <ir_version: 10, opset_import: ["":18]>
        g (float[1,2,5,8] q, float[1,2,8,5] k, float[1,2,5,8] v, float[8,8] w)
          => (float[1,5] score, float[1,2,5,8] classes, float[1,2,1,8] pooled)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] rows = {2}, int64[2] axes = {1, 2}>
        {
          cls = Slice(q, zero, one, rows)
          s = MatMul(cls, k)
          [score] p = Softmax<axis=-1>(s)
          score = ReduceMean<keepdims=0>(p, axes)
          h = MatMul(v, w)
          [classes] classes = Softmax<axis=-1>(h)
          t = MatMul(cls, k)
          [pool] u = Softmax<axis=-1>(t)
          pooled = MatMul(u, v)
        }
        """
    )
    assert [(layer.node.name, layer.queries) for layer in attention_layers(model)] == [("pool", 1)]
    assert fused_attention(b"", model) == FusedAttention(0, 0)


def test_what_a_score_computes_is_no_attention_of_the_model() -> None:
    model = attention_blocks(depth=2)
    for node in model.graph.node:
        if node.name == "block1/softmax":
            node.name = "tcompile/attn_1/score/Softmax"
    assert [layer.node.name for layer in attention_layers(model)] == ["block0/softmax"]


def soft_capped(cap: str) -> onnx.ModelProto:
    return parse(
        f"""
        <ir_version: 10, opset_import: ["":18]>
        g (float[1,2,5,8] q, float[1,2,8,5] k, float[1,2,5,8] v) => (float[1,2,5,8] y)
        {{
          s = MatMul(q, k)
          c = {cap}(s)
          [cap] p = Softmax<axis=-1>(c)
          y = MatMul(p, v)
        }}
        """
    )


def test_what_no_kernel_computes_inside_is_told_and_not_expected() -> None:
    assert fused_attention(b"", soft_capped("Tanh")) == FusedAttention(0, 0)
    (note,) = unfused_notes(soft_capped("Tanh"))
    assert "'cap'" in note
    assert "Tanh" in note
    assert fused_attention(b"", soft_capped("Identity")) == FusedAttention(1, 0, ("cap",))
    assert unfused_notes(soft_capped("Identity")) == ()


def test_a_constant_query_is_fused_and_a_weight_for_keys_is_not() -> None:
    def with_constant(name: str) -> onnx.ModelProto:
        model = soft_capped("Identity")
        (given,) = [i for i in model.graph.input if i.name == name]
        model.graph.input.remove(given)
        dims = [d.dim_value for d in given.type.tensor_type.shape.dim]
        model.graph.initializer.append(numpy_helper.from_array(np.ones(dims, np.float32), name))
        return model

    assert expected_fused(with_constant("q")) == ["cap"]
    assert expected_fused(with_constant("k")) == []
    assert attention_layers(with_constant("v")) == []
