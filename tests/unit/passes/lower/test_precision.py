"""fp16 in the graph: what stays fp32, where casts lie, and that the result is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx.reference import ReferenceEvaluator

from tcompile.core.errors import InternalError, ModelError
from tcompile.core.rounding import BFLOAT16
from tcompile.passes.lower import to_half
from tcompile.passes.lower.precision import check_types
from tcompile.targets.backends.ort import OrtRunner
from tests.support.onnx_models import to_onnx
from tests.unit.passes.lower.blocks import attention_blocks, difference, parse, run, save

#: fp16 rounds to 11 bits: half a unit in the last place.
ROUNDOFF = 2.0**-11


def single_nodes(graph: gs.Graph) -> set[str]:
    """Names of the nodes that compute in fp32, casts aside."""
    return {
        node.name
        for node in graph.nodes
        if node.op != "Cast" and any(t.dtype == np.float32 for t in node.outputs)
    }


def casts(graph: gs.Graph) -> int:
    return sum(node.op == "Cast" for node in graph.nodes)


def spread(got: dict[str, Any], expected: dict[str, Any]) -> float:
    """Root mean square of the difference, relative to that of the values."""
    (a,), (b,) = got.values(), expected.values()
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))


def rounding_bound(model: onnx.ModelProto) -> float:
    """Return what rounding after each step may do to the values, in the root mean square.

    A random walk of as many steps as the longest path: each rounds a value by up to ROUNDOFF
    relative to it, uniformly (a root mean square of ROUNDOFF / √3), and pre-norm blocks do not
    amplify it.
    """
    depth: dict[str, int] = {}
    for node in model.graph.node:
        steps = 1 + max((depth.get(name, 0) for name in node.input), default=0)
        depth.update(dict.fromkeys(node.output, steps))
    return ROUNDOFF * float(np.sqrt(max(depth.values()) / 3))


@pytest.mark.parametrize("mask", [None, "shared"])
def test_blocks_stay_within_rounding(tmp_path: Path, mask: str | None) -> None:
    model = attention_blocks(batch="batch", mask=mask)  # type: ignore[arg-type]
    graph = gs.import_onnx(model)
    half = to_half(graph)
    assert single_nodes(half) == set()
    assert casts(half) == 2  # the input and the output
    expected = run(save(model, tmp_path, "single.onnx"))
    got = run(save(to_onnx(half), tmp_path))
    assert all(value.dtype == np.float32 for value in got.values())
    assert 0 < spread(got, expected) < rounding_bound(model)


def test_the_bound_tells_fp16_from_coarser_types(tmp_path: Path) -> None:
    model = attention_blocks()
    expected = run(save(model, tmp_path, "single.onnx"))
    for weight in model.graph.initializer:
        value = onnx.numpy_helper.to_array(weight)
        if value.dtype == np.float32:
            mantissa, exponent = np.frexp(value)
            coarse = np.ldexp(np.round(mantissa * 2**8) / 2**8, exponent)  # bfloat16's bits
            weight.CopyFrom(onnx.numpy_helper.from_array(coarse.astype(np.float32), weight.name))
    assert spread(run(save(model, tmp_path)), expected) > rounding_bound(model)


def test_the_callers_graph_is_left_alone() -> None:
    graph = gs.import_onnx(attention_blocks(depth=1))
    before = to_onnx(graph).SerializeToString(deterministic=True)
    to_half(graph, fp32_nodes=frozenset({"block0/softmax"}), keep_io=False)
    assert to_onnx(graph).SerializeToString(deterministic=True) == before


def test_weights_keep_their_names_and_become_fp16() -> None:
    half = to_half(gs.import_onnx(attention_blocks(depth=1)))
    tensors = half.tensors()
    assert tensors["block0/proj/w"].dtype == np.float16
    assert tensors["block0/flat"].dtype == np.int64


def test_named_nodes_stay_single_with_one_cast_a_tensor() -> None:
    graph = gs.import_onnx(attention_blocks(depth=1, tapped=(0,)))
    half = to_half(graph, fp32_nodes=frozenset({"tap0", "block0/scores"}))
    assert single_nodes(half) == {"tap0", "block0/scores"}
    # x, q and k up, scores down, the probabilities up, y down: the tap is an output in fp32 already
    assert casts(half) == 6


def test_inputs_and_outputs_become_fp16_when_asked() -> None:
    half = to_half(gs.import_onnx(attention_blocks(depth=1)), keep_io=False)
    assert {t.dtype for t in (*half.inputs, *half.outputs)} == {np.dtype(np.float16)}
    assert casts(half) == 0


SPELLED = """
<ir_version: 10, opset_import: ["":18]>
g (float[1,5,64] x, float[64] w) => (float[1,5,64] norm, float[1,5,64] rms, float[1,5,64] unit)
<int64[1] axis = {-1}, float two = {2.0}, float eps = {0.000001}, float tiny = {0.000000000001}>
{
  [mean] mean = ReduceMean(x, axis)
  [centre] centred = Sub(x, mean)
  [square] squared = Pow(centred, two)
  [variance] variance = ReduceMean(squared, axis)
  [guard] guarded = Add(variance, eps)
  [root] deviation = Sqrt(guarded)
  [normal] normal = Div(centred, deviation)
  [weigh] norm = Mul(normal, w)
  [product] product = Mul(x, x)
  [meansquare] meansquare = ReduceMean(product, axis)
  [guard2] guarded2 = Add(meansquare, eps)
  [root2] root = Sqrt(guarded2)
  [inverse] inverse = Reciprocal(root)
  [rms] rms = Mul(x, inverse)
  [length] length = ReduceL2(x, axis)
  [floor] floored = Max(length, tiny)
  [unit] unit = Div(x, floored)
}
"""


def test_spelled_out_norms_stay_single() -> None:
    model = parse(SPELLED)
    half = to_half(gs.import_onnx(model))
    assert single_nodes(half) == {node.name for node in model.graph.node} - {"weigh"}
    # In numpy fp16 is fp16 (ONNX Runtime's CPU computes more exactly): squares of 1000 overflow.
    rng = np.random.default_rng(0)
    x = (1000 + 500 * rng.standard_normal((1, 5, 64))).astype(np.float16).astype(np.float32)
    feed = {"x": x, "w": np.ones(64, np.float32)}
    expected = ReferenceEvaluator(model).run(None, feed)
    got = ReferenceEvaluator(to_onnx(half)).run(None, feed)
    for want, value in zip(expected, got, strict=True):
        assert np.abs(value - want).max() <= 2 * ROUNDOFF * np.abs(want).max()


def test_products_of_two_tensors_are_no_squares() -> None:
    model = parse(
        """
        <ir_version: 10, opset_import: ["":18]>
        g (float[1,5,64] x, float[64] w) => (float[1,5,1] y)
        <int64[1] axis = {-1}>
        {
          [centre] centred = Sub(x, w)
          [product] product = Mul(centred, w)
          [mean] y = ReduceMean(product, axis)
        }
        """
    )
    assert single_nodes(to_half(gs.import_onnx(model))) == set()


def test_masks_beyond_fp16_are_clamped_only_before_a_softmax() -> None:
    lowest = "float low = {-1e30}"
    model = parse(
        f"""
        <ir_version: 10, opset_import: ["":18]>
        g (float[1,2,4,4] x, bool[1,1,4,4] m) => (float[1,2,4,4] p, float[1,2,4,4] s)
        <{lowest}, float zero = {{0.0}}>
        {{
          [choose] bias = Where(m, zero, low)
          [mask] masked = Add(x, bias)
          [softmax] p = Softmax<axis=-1>(masked)
          [large] s = Add(x, low)
        }}
        """
    )
    half = to_half(gs.import_onnx(model))
    assert single_nodes(half) == {"large"}
    mask = np.triu(np.ones((1, 1, 4, 4), bool)).transpose(0, 1, 3, 2)
    feed = {"x": np.zeros((1, 2, 4, 4), np.float32), "m": mask}
    p = ReferenceEvaluator(to_onnx(half)).run(None, feed)[0]
    np.testing.assert_allclose(p[0, 0, 3], 0.25)
    np.testing.assert_array_equal(p[0, 0, 0], [1, 0, 0, 0])


def test_integers_held_as_floats_stay_exact() -> None:
    model = parse(
        """
        <ir_version: 10, opset_import: ["":18]>
        g (int64[4] i, float[4] x) => (float[4] y)
        <float one = {1.0}>
        {
          [hold] f = Cast<to=1>(i)
          [next] n = Add(f, one)
          [use] y = Mul(n, x)
        }
        """
    )
    assert single_nodes(to_half(gs.import_onnx(model))) == {"next"}


FUNCTIONS = """
<ir_version: 10, opset_import: ["":20, "tcompile":1]>
g (float[B,9,8] x, float[B,9] score) => (float[B,4,8] y, float[B,9,8] z)
{
  [top] index = tcompile.TcTestTop<keep=4>(score)
  [gather] y = tcompile.TcTestGather(x, index)
  [typed] z = tcompile.TcTestTyped(x)
}
<opset_import: ["":20], domain: "tcompile">
TcTestTop <keep> (scores) => (index)
{
  k = Constant<value_int: int=@keep>()
  one = Constant<value_ints=[1]>()
  count = Reshape(k, one)
  values, index = TopK<axis=-1>(scores, count)
}
<opset_import: ["":20], domain: "tcompile">
TcTestGather (x, index) => (y)
{
  last = Constant<value_ints=[-1]>()
  rows = Unsqueeze(index, last)
  y = GatherND<batch_dims=1>(x, rows)
}
<opset_import: ["":20], domain: "tcompile">
TcTestTyped (x) => (y)
{
  half = Constant<value_float=0.5>()
  y = Mul(x, half)
}
"""


def test_functions_go_to_fp16_when_their_body_types(tmp_path: Path) -> None:
    model = parse(FUNCTIONS)
    half = to_half(gs.import_onnx(model), fp32_nodes=frozenset({"top"}))
    by_name = {node.name: node for node in half.nodes}
    assert by_name["top"].inputs[0].dtype == np.float32
    assert by_name["gather"].inputs[0].dtype == np.float16
    assert by_name["typed"].inputs[0].dtype == np.float32
    expected = run(save(model, tmp_path, "single.onnx"))
    assert difference(run(save(to_onnx(half), tmp_path)), expected) < ROUNDOFF


def test_control_flow_is_refused() -> None:
    model = parse(
        """
        <ir_version: 10, opset_import: ["":18]>
        g (bool c, float[2] x) => (float[2] y)
        {
          [branch] y = If(c) <
            then_branch = a () => (float[2] p) { p = Identity(x) },
            else_branch = b () => (float[2] q) { q = Neg(x) }>
        }
        """
    )
    with pytest.raises(ModelError, match="branch"):
        to_half(gs.import_onnx(model))


def test_a_type_clash_is_an_internal_error() -> None:
    half = to_half(gs.import_onnx(attention_blocks(depth=1)))
    next(node for node in half.nodes if node.name == "block0/mix").outputs[0].dtype = np.dtype(
        np.float32
    )
    with pytest.raises(InternalError, match="block0"):
        check_types(half, {})


HALF_MASK = """
<ir_version: 9, opset_import: ["" : 17]>
g (float[1,2,4] x, bool[1,4] seen) => (float[1,2,4] y)
<float one = {1.0}, float least = {-3.4028234663852886e38}>
{
   as_float = Cast <to = 1> (seen)
   hidden = Sub (one, as_float)
   bias = Mul (hidden, least)
   masked = Add (x, bias)
   y = Softmax <axis = -1> (masked)
}
"""


def test_a_mask_of_the_least_float_is_finite_in_bf16(tmp_path: Path) -> None:
    """bf16 ends below it, and infinity times zero is no number."""
    graph = gs.import_onnx(parse(HALF_MASK))
    half = to_half(graph, half=BFLOAT16)
    x = np.arange(8, dtype=np.float32).reshape(1, 2, 4) / 4
    seen = np.array([[True, True, True, False]])
    runner = OrtRunner(save(to_onnx(half), tmp_path))
    found = runner.run({"x": x, "seen": seen})["y"]
    want = np.exp(x) * seen / (np.exp(x) * seen).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, want, atol=2**-8)


@pytest.mark.parametrize(("opset", "kind"), [(20, np.float32), (22, BFLOAT16)])
def test_conv_is_bf16_from_the_opset_on_that_has_it(opset: int, kind: object) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : OPSET]>
    g (float[1,3,4,4] x) => (float[1,2,4,4] y)
    <float[2,3,1,1] w = {1,2,3,4,5,6}> { c = Conv (x, w)  y = Relu (c) }
    """
    half = to_half(gs.import_onnx(parse(text.replace("OPSET", str(opset)))), half=BFLOAT16)
    conv = next(node for node in half.nodes if node.op == "Conv")
    assert np.dtype(conv.outputs[0].dtype) == kind


def test_bf16_runs_as_the_reference_rounds_it(tmp_path: Path) -> None:
    """ONNX Runtime has no kernels for it: what is run in their place equals ONNX's reference where
    that rounds once an operator."""
    text = """
    <ir_version: 9, opset_import: ["" : 17]>
    g (float[5,64] x) => (float[5,64] y)
    <float third = {0.33333334}, float seventh = {0.14285715}>
    { a = Mul (x, third)  b = Add (a, seventh)  c = Sub (b, x)  y = Mul (c, c) }
    """
    graph = gs.import_onnx(parse(text))
    half = to_half(graph, half=BFLOAT16)
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    (ours,) = OrtRunner(save(to_onnx(half), tmp_path)).run({"x": x}).values()
    (rounded,) = ReferenceEvaluator(to_onnx(half)).run(None, {"x": x})
    (exact,) = ReferenceEvaluator(parse(text)).run(None, {"x": x})
    np.testing.assert_array_equal(ours, rounded)
    assert not np.array_equal(ours, exact)
