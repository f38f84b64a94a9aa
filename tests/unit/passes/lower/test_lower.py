"""Results of `lower` on one graph for each kind of target."""

from __future__ import annotations

from pathlib import Path

import onnx_graphsurgeon as gs
import pytest

from tcompile.core.errors import UsageError
from tcompile.passes.lower import lower, lower_opset
from tcompile.targets import load_target
from tests.support.onnx_models import to_onnx
from tests.unit.passes.lower.blocks import attention_blocks, difference, parse, run, save


def count(graph: gs.Graph, op: str) -> int:
    return sum(node.op == op for node in graph.nodes)


@pytest.mark.parametrize(
    ("target", "precision", "operators", "opset"),
    [
        ("cpu", "fp32", 2, 23),
        ("rtx-4090", "fp32", 0, 23),
        ("cpu", "fp16", 2, 23),
        ("rtx-4090", "fp16", 0, 23),
        ("jetson-orin", "fp32", 0, 20),
        ("jetson-orin", "fp16", 0, 20),
    ],
)
def test_attention_and_opset(
    tmp_path: Path, target: str, precision: str, operators: int, opset: int
) -> None:
    model = attention_blocks(depth=2, operator=True)
    graph = gs.import_onnx(model)
    lowered = lower(graph, target=load_target(target), precision=precision)  # type: ignore[arg-type]
    assert (count(lowered, "Attention"), lowered.opset) == (operators, opset)
    assert count(graph, "Attention") == 2  # the caller's graph
    expected = run(save(model, tmp_path, "source.onnx"))
    tolerance = 1e-5 if precision == "fp32" else 3e-3
    assert difference(run(save(to_onnx(lowered), tmp_path)), expected) < tolerance


def test_an_attention_named_for_fp32_is_spelled_out_in_fp32() -> None:
    graph = gs.import_onnx(attention_blocks(depth=2, operator=True))
    keep = frozenset({"block1/attention"})
    lowered = lower(graph, target=load_target("l4"), precision="fp16", fp32_nodes=keep)
    by_name = {node.name: node for node in lowered.nodes}
    assert by_name["block0/attention/Softmax"].inputs[0].dtype == "float16"
    assert by_name["block1/attention/Softmax"].inputs[0].dtype == "float32"
    assert by_name["block1/proj"].inputs[0].dtype == "float16"


def test_onnx_runtime_gets_no_mask_that_queries_share(tmp_path: Path) -> None:
    graph = gs.import_onnx(attention_blocks(depth=1, operator=True, mask="shared"))
    lowered = lower(graph, target=load_target("cpu"), precision="fp32")
    assert count(lowered, "Attention") == 0
    run(save(to_onnx(lowered), tmp_path))


@pytest.mark.parametrize(
    ("mask", "operators"),
    [("17,17", 1), ("1,17", 0), ("2,17,17", 1), ("2,1,17", 0), ("B,2,17,17", 1), ("B,1,1,17", 0)],
)
def test_masks_that_queries_share_have_one_row(tmp_path: Path, mask: str, operators: int) -> None:
    model = parse(
        f"""
        <ir_version: 11, opset_import: ["":23]>
        g (float[B,17,64] x, float[{mask}] mask) => (float[B,17,64] y)
        {{ [att] y = Attention<q_num_heads=2, kv_num_heads=2, scale=0.3>(x, x, x, mask) }}
        """
    )
    lowered = lower(gs.import_onnx(model), target=load_target("cpu"), precision="fp32")
    assert count(lowered, "Attention") == operators


def test_names_become_unique_and_printable_and_still_mean_the_same_nodes() -> None:
    model = attention_blocks(depth=2)
    for node in model.graph.node:
        if node.name.endswith("/softmax"):
            node.name = 'soft[max] "x"|'
    graph = gs.import_onnx(model)
    wanted = frozenset({'soft[max] "x"|'})
    lowered = lower(graph, target=load_target("rtx-3060"), precision="fp16", fp32_nodes=wanted)
    names = [node.name for node in lowered.nodes]
    assert len(set(names)) == len(names)
    assert not any(set(name) & set('[]|"') for name in names)
    softmaxes = [node for node in lowered.nodes if node.op == "Softmax"]
    assert [node.outputs[0].dtype for node in softmaxes] == ["float32", "float32"]


def test_an_unknown_precision_is_refused() -> None:
    graph = gs.import_onnx(attention_blocks(depth=1))
    with pytest.raises(UsageError, match="fp8"):
        lower(graph, target=load_target("rtx-3060"), precision="fp8")


def test_an_opset_is_not_lowered_past_an_operator() -> None:
    model = parse(
        """
        <ir_version: 11, opset_import: ["":23]>
        g (float[1,4] x) => (float[1,4] y) { h = Relu(x) [s] y = Swish(h) }
        """.replace("23", "24")
    )
    graph = gs.import_onnx(model)
    assert lower_opset(graph, 20) == ("Swish",)
    assert graph.opset == 24


def test_an_attribute_that_an_older_opset_lacks_keeps_the_newer_one() -> None:
    model = parse(
        """
        <ir_version: 12, opset_import: ["":24]>
        g (float[4] x) => (float16[4] y) { y = Cast<to=10, round_mode="up">(x) }
        """
    )
    assert lower_opset(gs.import_onnx(model), 20) == ("Cast",)
