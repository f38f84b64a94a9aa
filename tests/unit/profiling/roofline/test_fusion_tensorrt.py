from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile.core.schedule import Reduction, Schedule, Spec
from tcompile.models.onnx_vit import VitSpec, build_vit
from tcompile.passes.lower import lower
from tcompile.passes.reduce import reduce_graph
from tcompile.pipeline import read
from tcompile.profiling.roofline import device_of, modelled
from tcompile.profiling.roofline.fusion import tensorrt_kernels
from tcompile.profiling.roofline.steps import steps_of
from tcompile.targets import load_target

DEVICE = {p: device_of(load_target("rtx-4090"), p) for p in ("fp16", "fp32", "int8")}


def kinds(graph: gs.Graph, precision: str = "fp16") -> Counter[str]:
    found = modelled(graph, DEVICE[precision], precision=precision)
    return Counter(k.kind for k in found.kernels)


def test_what_a_second_block_adds(vit):
    added = kinds(vit(depth=2)) - kinds(vit(depth=1))
    # QKV, projection and two of the MLP; the attention; two norms; Q, K and V laid out.
    assert added == {"gemm": 4, "attention": 1, "norm": 2, "gather": 1}


def test_epilogues_take_bias_gelu_and_residual(vit):
    found = modelled(vit(), DEVICE["fp16"], precision="fp16").kernels
    assert not [k for k in found if k.kind == "pointwise"]
    longest = max((k for k in found if k.kind == "gemm"), key=lambda k: len(k.nodes))
    assert any("erf" in n for n in longest.nodes)


def test_q_k_and_v_are_laid_out_by_a_kernel_each(vit):
    found = modelled(vit(), DEVICE["fp16"], precision="fp16").kernels
    assert [k.launches for k in found if k.kind == "gather"] == [3]


def test_attention_is_not_fused_in_fp32(vit):
    assert kinds(vit(), "fp32")["attention"] == 0
    assert kinds(vit(), "fp32")["gemm"] == kinds(vit())["gemm"] + 2


def test_attention_is_fused_in_int8_as_in_fp16(vit):
    for tokens in (512, 513):
        assert kinds(vit(tokens), "int8")["attention"] == kinds(vit(tokens))["attention"] == 1


def test_a_second_reader_of_the_probabilities_prevents_fusion(vit):
    graph = vit().copy()
    softmax = next(n for n in graph.nodes if n.op == "Softmax")
    graph.outputs.append(softmax.outputs[0])
    assert kinds(graph)["attention"] == 0


def test_so_does_a_reader_inside_the_graph(vit):
    graph = vit().copy()
    softmax = next(n for n in graph.nodes if n.op == "Softmax")
    row = gs.Variable("row", np.float32, softmax.outputs[0].shape)
    graph.nodes.append(gs.Node("Sqrt", "roots", inputs=[softmax.outputs[0]], outputs=[row]))
    graph.outputs.append(row)
    assert kinds(graph.toposort())["attention"] == 0


def test_scores_from_a_weight_are_no_attention():
    x, v = (gs.Variable(n, np.float32, (1, 64, 64)) for n in ("x", "v"))
    weight = gs.Constant("w", np.ones((64, 64), np.float32))
    a, b, y = (gs.Variable(n, np.float32, (1, 64, 64)) for n in "aby")
    nodes = [
        gs.Node("MatMul", "scores", inputs=[x, weight], outputs=[a]),
        gs.Node("Softmax", "softmax", inputs=[a], outputs=[b]),
        gs.Node("MatMul", "mix", inputs=[b, v], outputs=[y]),
    ]
    assert kinds(gs.Graph(nodes, [x, v], [y])) == {"gemm": 2, "norm": 1}


def test_a_residual_add_joins_the_product_behind_what_it_adds():
    x, a, b, y = (gs.Variable(n, np.float32, (1, 64, 64)) for n in "xaby")
    weight = gs.Constant("w", np.ones((64, 64), np.float32))
    nodes = [
        gs.Node("Relu", "relu", inputs=[x], outputs=[a]),
        gs.Node("MatMul", "product", inputs=[a, weight], outputs=[b]),
        gs.Node("Add", "residual", inputs=[a, b], outputs=[y]),
    ]
    graph = gs.Graph(nodes, [x], [y])
    found = modelled(graph, DEVICE["fp16"], precision="fp16").kernels
    assert [k.nodes for k in found] == [("relu",), ("product", "residual")]
    found = tensorrt_kernels(steps_of(graph, 1), DEVICE["fp16"])
    # `a` is an operand and is read once; a residual from elsewhere is read besides.
    assert found[1].products[0].extra == 0
    graph.inputs.append(gs.Variable("z", np.float32, (1, 64, 64)))
    graph.nodes[2].inputs[0] = graph.inputs[1]
    found = tensorrt_kernels(steps_of(graph, 1), DEVICE["fp16"])
    assert found[1].products[0].extra == 64 * 64 * 2


def test_a_mask_on_the_scores_stays_inside(vit):
    graph = vit().copy()
    softmax = next(n for n in graph.nodes if n.op == "Softmax")
    scores = softmax.inputs[0]
    masked = gs.Variable("masked", np.float32, scores.shape)
    mask = gs.Variable("mask", np.float32, (1, 1, 1, 197))
    graph.inputs.append(mask)
    softmax.inputs[0] = masked
    graph.nodes.append(gs.Node("Add", "add_mask", inputs=[scores, mask], outputs=[masked]))
    graph.toposort()
    assert kinds(graph) == kinds(vit())


def test_more_launches_cost_as_much_as_they_say(vit):
    base = modelled(vit(), DEVICE["fp16"], precision="fp16")
    slow = replace(DEVICE["fp16"], launch=DEVICE["fp16"].launch + 1e-3)
    launches = sum(k.launches for k in base.kernels)
    # Splitting K is no longer worth its second kernel.
    assert modelled(vit(), slow, precision="fp16").ms - base.ms == pytest.approx(launches, rel=0.01)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("vit") / "model.onnx"
    spec = VitSpec(image=112, patch=16, width=64, heads=2, depth=2, mlp_ratio=4)
    onnx.save(build_vit(spec), path)
    return read(path)


#: Kernels besides products that a reduction adds in TensorRT-RTX 1.7.1 plans (docs/roofline.md).
@pytest.mark.parametrize(
    ("score", "reducer"),
    [("static", "topk"), ("cls", "topk"), ("norm", "topk"), ("cls", "fuse"), ("dup", "merge")],
)
def test_reductions_add_the_kernels_that_real_engines_have(small, tmp_path, score, reducer):
    rtx = pytest.importorskip("tcompile.targets.backends.rtx")
    pytest.importorskip("tensorrt_rtx")
    from tcompile.targets.backends.fusion import kernels
    from tests.support.onnx_models import to_onnx

    step = Reduction("block:0", Spec(score), Spec(reducer), 30)
    schedule = Schedule("x", small.analysis.shape, (step,))
    reduced = reduce_graph(small.graph, small.analysis, schedule)

    def real(graph: gs.Graph, fp32_nodes: frozenset[str] = frozenset()) -> int:
        target = load_target("rtx-4090")
        path = tmp_path / "m.onnx"
        lowered = lower(graph, target=target, precision="fp16", fp32_nodes=fp32_nodes)
        onnx.save(to_onnx(lowered), path)
        return len(kernels(rtx.build(path, "8.9")))

    def expected(graph: gs.Graph) -> int:
        found = modelled(graph, DEVICE["fp16"], precision="fp16").kernels
        return sum(k.launches for k in found if k.kind != "gemm")

    added = real(reduced.graph, reduced.fp32_nodes) - real(small.graph)
    assert abs(expected(reduced.graph) - expected(small.graph) - added) <= 2
