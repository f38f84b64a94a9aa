"""The normal form, idea by idea, on graphs written as ONNX text."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from tcompile.core.errors import ModelError, UsageError
from tcompile.core.graph import BATCH, ints
from tcompile.passes.normalize import Normalized, normalize
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import VitSpec, build_vit, random_weights


def parse(body: str, inputs: str = "float[2,3,4] x", opset: int = 18) -> onnx.ModelProto:
    text = f'<ir_version: 9, opset_import: ["" : {opset}]> g ({inputs}) => (float y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def ops(found: Normalized) -> list[str]:
    return [n.op for n in found.graph.nodes]


def run(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Identity (x) y = Relu (a)", ["Relu"]),
        ("a = Dropout (x) y = Relu (a)", ["Relu"]),
        ("a = Cast <to = 1> (x) y = Relu (a)", ["Relu"]),
        ("s = Shape (x) a = Reshape (x, s) y = Relu (a)", ["Relu"]),
        ("a = Transpose <perm = [0, 1, 2]> (x) y = Relu (a)", ["Relu"]),
        ("z = Constant <value_float = 0.0> () a = Add (z, x) y = Relu (a)", ["Relu"]),
        ("o = Constant <value_float = 1.0> () a = Mul (x, o) y = Relu (a)", ["Relu"]),
        ("z = Constant <value_float = 0.0> () a = Sub (z, x) y = Relu (a)", ["Sub", "Relu"]),
        ("a = Concat <axis = 1> (x) y = Relu (a)", ["Relu"]),
    ],
)
def test_what_does_nothing_goes(body: str, left: list[str]) -> None:
    model = parse(body)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    expected = run(model, x)
    found = normalize(model)
    assert ops(found) == left
    np.testing.assert_array_equal(run(to_onnx(found.graph), x), expected)


def test_shape_start_and_end_are_respected() -> None:
    """graphsurgeon's folder gives the whole shape here, and so a wrong model."""
    body = (
        "a = Shape <start = 0, end = 1> (x) m = Constant <value_ints = [-1]> () "
        "t = Concat <axis = 0> (a, m) r = Reshape (x, t) y = Relu (r)"
    )
    found = normalize(parse(body))
    assert list(found.graph.outputs[0].shape) == [2, 12]


def test_a_shared_shape_is_no_longer_shared_and_is_explicit() -> None:
    body = (
        "t = Constant <value_ints = [2, -1]> () a = Reshape (x, t) b = Relu (x) "
        "c = Reshape (b, t) y = Add (a, c)"
    )
    found = normalize(parse(body))
    reshapes = [n for n in found.graph.nodes if n.op == "Reshape"]
    assert [ints(n.inputs[1]) for n in reshapes] == [[2, 12], [2, 12]]
    assert reshapes[0].inputs[1] is not reshapes[1].inputs[1]


def test_local_functions_are_inlined_and_constant_ifs_taken() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18, "own" : 1]>
    g (float[2,3,4] x) => (float[2,3,4] y) { y = own.twice (x) }
    <domain: "own", opset_import: ["" : 18]> twice (a) => (b) { b = Add (a, a) }"""
    assert ops(normalize(onnx.parser.parse_model(text))) == ["Add"]
    body = (
        "c = Constant <value = bool {1}> () "
        "y = If (c) <then_branch = t () => (float[2,3,4] u) { u = Relu (x) }, "
        "else_branch = e () => (float[2,3,4] w) { w = Neg (x) }>"
    )
    assert ops(normalize(parse(body))) == ["Relu"]


def test_the_nan_guard_goes_where_no_mask_is_added_and_stays_where_one_is() -> None:
    guard = "p = Softmax <axis = -1> (l) n = IsNaN (p) q = Where (n, zero, p) y = Relu (q)"
    zero = "zero = Constant <value_float = 0.0> () xt = Transpose <perm = [0, 2, 1]> (x) "
    plain = zero + "l = MatMul (x, xt) " + guard
    assert "IsNaN" not in ops(normalize(parse(plain)))
    masked = zero + "a = MatMul (x, xt) l = Add (a, mask) " + guard
    found = normalize(parse(masked, "float[2,3,4] x, float[2,3,3] mask"))
    assert "IsNaN" in ops(found)


def test_masks_that_allow_everything_go() -> None:
    body = (
        "t = Constant <value_ints = [1, 1, 3, 3]> () k = ConstantOfShape <value = bool[1] {1}> (t) "
        "u = Constant <value_ints = [0]> () q = Unsqueeze (x, u) m = Attention (q, q, q, k) "
        "y = Relu (m)"
    )
    found = normalize(parse(body, opset=23))
    attention = next(n for n in found.graph.nodes if n.op == "Attention")
    assert len(attention.inputs) == 3


def test_digit_strings_are_literals_and_a_dynamic_image_is_refused() -> None:
    model = parse("y = Relu (x)", "float[N,3,4] x")
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "3"
    assert list(normalize(model).graph.inputs[0].shape) == [BATCH, 3, 4]
    model = parse("y = Relu (x)", "float[N,3,H] x")
    with pytest.raises(ModelError, match="dynamic"):
        normalize(model)
    model = parse("y = Relu (x)", "float[N,3,H] x")
    bound = normalize(model, shapes={"x": ["batch", 3, 8]})
    assert list(bound.graph.inputs[0].shape) == [BATCH, 3, 8]
    with pytest.raises(UsageError, match="no input"):
        normalize(parse("y = Relu (x)"), shapes={"z": [1]})


def test_data_dependent_shapes_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="NonZero"):
        normalize(parse("z = NonZero (x) c = Cast <to = 1> (z) y = Relu (c)"))


def test_contradicting_shapes_are_one_line() -> None:
    body = "t = Constant <value_floats = [1.0, 2.0]> () r = Add (x, t) y = Relu (r)"
    with pytest.raises(ModelError) as caught:
        normalize(parse(body))
    assert "\n" not in str(caught.value)


def test_static_and_free_batch_are_the_same_graph() -> None:
    spec = VitSpec()
    weights = random_weights(spec)
    fixed, free = (normalize(build_vit(spec, weights, batch=b)) for b in (1, None))
    expansion = {"Shape", "Gather", "Concat", "Expand"}
    kinds = [sorted(o for o in ops(f) if o not in expansion) for f in (fixed, free)]
    assert kinds[0] == kinds[1]
    dims = {d for t in free.graph.tensors().values() if t.inputs for d in t.shape}
    assert all(isinstance(d, int) or str(d).startswith(BATCH) for d in dims)


def test_a_mask_expanded_over_a_free_batch_is_seen_to_be_constant() -> None:
    body = (
        "s = Shape <start = 0, end = 1> (x) r = Constant <value_ints = [3, 4]> () "
        "t = Concat <axis = 0> (s, r) o = Constant <value = bool[1,1,1] {1}> () "
        "m = Expand (o, t) zero = Constant <value_float = 0.0> () "
        "low = Constant <value_float = -3e38> () w = Where (m, zero, low) a = Add (x, w) "
        "y = Relu (a)"
    )
    assert ops(normalize(parse(body, "float[N,3,4] x"))) == ["Relu"]


def test_cls_is_expanded_at_run_time_under_a_free_batch() -> None:
    body = (
        "s = Shape <start = 0, end = 1> (x) r = Constant <value_ints = [1, 4]> () "
        "t = Concat <axis = 0> (s, r) c = Expand (cls, t) j = Concat <axis = 1> (c, x) "
        "y = Relu (j)"
    )
    model = parse(body, "float[N,3,4] x, float[1,1,4] cls")
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.ones((1, 1, 4), np.float32), "cls")
    )
    del model.graph.input[1]
    found = normalize(model)
    assert list(found.graph.outputs[0].shape) == [BATCH, 4, 4]
    for batch in (1, 5):
        assert run(to_onnx(found.graph), np.ones((batch, 3, 4), np.float32)).shape[0] == batch


def test_branches_of_two_ifs_keep_their_own_weights() -> None:
    """Names inside a branch are its own affair: two branches may call different weights alike."""

    def branch(number: float) -> onnx.GraphProto:
        stored = onnx.numpy_helper.from_array(np.full(4, number, np.float32), "k")
        out = onnx.helper.make_tensor_value_info("o", onnx.TensorProto.FLOAT, None)
        add = onnx.helper.make_node("Add", ["x", "k"], ["o"])
        return onnx.helper.make_graph([add], "b", [], [out], [stored])

    model = parse("a = Identity (x) b = Identity (x) y = Sub (a, b)")
    for node, numbers in zip(model.graph.node, ((1.0, 2.0), (10.0, 20.0)), strict=False):
        node.op_type, node.input[0] = "If", "yes"
        for name, number in zip(("then_branch", "else_branch"), numbers, strict=True):
            node.attribute.append(onnx.helper.make_attribute(name, branch(number)))
    yes = onnx.numpy_helper.from_array(np.asarray(True), "yes")
    model.graph.initializer.append(yes)
    assert (run(to_onnx(normalize(model).graph), np.zeros((2, 3, 4), np.float32)) == -9).all()


@pytest.mark.parametrize("batch", [1, None])
def test_half_precision_becomes_single_inside(batch: int | None) -> None:
    """Inputs and outputs keep their type; what comes out differs by roundings of fp16."""
    model = build_vit(VitSpec(pool="none"), random_weights(VitSpec(pool="none")), batch=batch)
    for weight in model.graph.initializer:
        array = onnx.numpy_helper.to_array(weight)
        if array.dtype == np.float32:
            half = onnx.numpy_helper.from_array(array.astype(np.float16), weight.name)
            weight.CopyFrom(half)
    for end in (*model.graph.input, *model.graph.output):
        end.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    x = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float16)
    options = {"providers": ["CPUExecutionProvider"]}
    expected = ort.InferenceSession(model.SerializeToString(), **options).run(None, {"image": x})[0]
    found = normalize(model)
    assert found.widened
    inside = [t for n in found.graph.nodes for t in n.outputs]
    halves = [t.name for t in inside if t.dtype == np.float16]
    assert halves == [o.name for o in found.graph.outputs]
    made = to_onnx(found.graph)
    onnx.checker.check_model(made, full_check=True)
    actual = ort.InferenceSession(made.SerializeToString(), **options).run(None, {"image": x})[0]
    assert actual.dtype == np.float16
    assert np.abs(actual - expected).max() < 0.02 * np.abs(expected).max()
