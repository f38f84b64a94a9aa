from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tcompile.analysis.flops import node_flops
from tcompile.core.domain import DOMAIN
from tcompile.core.errors import ModelError
from tcompile.profiling.roofline.steps import steps_of
from tcompile.profiling.roofline.work import product_of


def merge_graph(batch: int | str = 2) -> gs.Graph:
    """A TcMergeTokens call on 10 tokens of 8 channels: 3 of 5 even ones merge."""
    x = gs.Variable("x", np.float32, (batch, 10, 8))
    size = gs.Variable("size", np.float32, (batch, 10))
    keep, source, target = (
        gs.Variable(n, np.int64, (batch, k)) for n, k in (("keep", 2), ("source", 3), ("target", 3))
    )
    slots = gs.Constant("slots", np.arange(5, dtype=np.int64))
    y, new = gs.Variable("y", np.float32, (batch, 7, 8)), gs.Variable("new", np.float32, (batch, 7))
    call = gs.Node(
        "TcMergeTokens",
        "merge",
        inputs=[x, size, keep, source, target, slots],
        outputs=[y, new],
        domain=DOMAIN,
    )
    return gs.Graph([call], [x, size, keep, source, target], [y, new], opset=18)


def test_a_token_op_becomes_the_steps_of_its_body():
    graph = merge_graph()
    steps = steps_of(graph, 1).steps
    assert {s.op for s in steps} >= {"GatherND", "MatMul", "Concat", "Equal"}
    assert "Constant" not in {s.op for s in steps}
    made = {v.name for s in steps for v in s.writes}
    assert {"y", "new"} <= made
    read = {v.name for s in steps for v in s.reads if not v.constant}
    assert read - made == {"x", "size", "keep", "source", "target"}
    assert all(v.shape or v.constant for s in steps for v in s.writes)


def test_a_body_has_the_products_that_the_flop_count_sees():
    graph = merge_graph()
    products = [product_of(s) for s in steps_of(graph, 1).steps if s.op == "MatMul"]
    flops = sum(2 * p.batch * p.rows * p.columns * p.inner for p in products)
    assert flops == node_flops(graph.nodes[0]) > 0


def test_a_free_batch_becomes_the_number_asked_for():
    by_batch = {b: steps_of(merge_graph("batch"), b).steps for b in (1, 5)}
    for one, five in zip(by_batch[1], by_batch[5], strict=True):
        for a, b in zip(one.writes, five.writes, strict=True):
            assert (b.count == 5 * a.count) or (a.count == b.count and "slots" in b.name)


def test_a_merged_batch_axis_is_multiplied():
    x = gs.Variable("x", np.float32, ("batch*3", 4))
    y = gs.Variable("y", np.float32, ("batch*3", 4))
    graph = gs.Graph([gs.Node("Relu", "relu", inputs=[x], outputs=[y])], [x], [y])
    assert steps_of(graph, 4).steps[0].writes[0].shape == (12, 4)


def test_a_tensor_without_a_shape_is_an_error_that_names_it():
    x, y = gs.Variable("x", np.float32, (1, 4)), gs.Variable("mystery", np.float32)
    z = gs.Variable("z", np.float32, (1, 4))
    nodes = [
        gs.Node("Relu", "a", inputs=[x], outputs=[y]),
        gs.Node("Relu", "b", inputs=[y], outputs=[z]),
    ]
    with pytest.raises(ModelError, match="mystery"):
        steps_of(gs.Graph(nodes, [x], [z]), 1)


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "flops"),
    [
        ("MatMul", [(2, 5, 8), (8, 6), (2, 5, 6)], {}, 2 * 2 * 5 * 8 * 6),
        ("MatMul", [(2, 3, 5, 8), (2, 3, 8, 6), (2, 3, 5, 6)], {}, 2 * 6 * 5 * 8 * 6),
        ("Gemm", [(5, 8), (6, 8), (5, 6)], {"transB": 1}, 2 * 5 * 8 * 6),
        ("Gemm", [(8, 5), (8, 6), (5, 6)], {"transA": 1}, 2 * 5 * 8 * 6),
        ("Conv", [(2, 3, 8, 8), (16, 3, 4, 4), (2, 16, 2, 2)], {}, 2 * 2 * 16 * 4 * 48),
        ("Conv", [(1, 6, 4, 4), (6, 1, 3, 3), (1, 6, 4, 4)], {"group": 6}, 2 * 96 * 9),
        (
            "Einsum",
            [(2, 5, 8), (2, 6, 8), (2, 5, 6)],
            {"equation": "bic,bjc->bij"},
            2 * 2 * 5 * 8 * 6,
        ),
    ],
)
def test_products_have_the_flops_of_their_operator(op, shapes, attributes, flops):
    a, b, y = (gs.Variable(n, np.float32, s) for n, s in zip("aby", shapes, strict=True))
    graph = gs.Graph([gs.Node(op, op, attributes, [a, b], [y])], [a, b], [y])
    p = product_of(steps_of(graph, 1).steps[0])
    assert 2 * p.batch * p.rows * p.columns * p.inner == flops
