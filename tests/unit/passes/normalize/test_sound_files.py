"""Sound files that inference, the converter or a runtime stumble over; and true words of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from tcompile import pipeline
from tcompile.core.errors import ModelError
from tcompile.models.onnx_vit import VitSpec, build_vit, random_weights
from tcompile.passes.normalize import normalize
from tcompile.passes.normalize.convert_opset import to_known_opset
from tests.support.onnx_models import to_onnx


def parse(body: str, inputs: str, opset: int = 18) -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => (float y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def agrees(model: onnx.ModelProto, *shape: int, bound: bool = False) -> None:
    """Hold the normal form against ONNX Runtime on the file as it came."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def run(one: onnx.ModelProto) -> np.ndarray:
        session = ort.InferenceSession(one.SerializeToString())
        return np.asarray(session.run(None, {"x": x})[0])

    want = run(model)
    np.testing.assert_allclose(
        run(to_onnx(normalize(model, shapes={"x": shape} if bound else None).graph)),
        want,
        atol=1e-5,
    )


TABLE = (
    "a = Constant <value_ints = [0, 1, 2]> () b = Constant <value_ints = [0, 1, 2, 3, 4]> () "
    "one = Constant <value_ints = [1]> () zero = Constant <value_ints = [0]> () "
    "l = Unsqueeze (a, one) r = Unsqueeze (b, zero) "
)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
@pytest.mark.parametrize("batch", ["2", "N"])
def test_a_table_of_small_integers_is_no_vector(op: str, batch: str) -> None:
    """ONNX follows values of integers as if all were vectors, and so refuses [3, 1] + [1, 5]."""
    body = TABLE + f"t = {op} (l, r) f = Cast <to = 1> (t) y = Add (x, f)"
    agrees(parse(body, f"float[{batch},3,5] x"), 2, 3, 5)


def test_a_mask_of_lengths_under_a_free_batch() -> None:
    body = TABLE + (
        "s = Shape <start = 0, end = 1> (x) m = LessOrEqual (r, l) "
        "d = Constant <value_ints = [3, 5]> () t = Concat <axis = 0> (s, d) e = Expand (m, t) "
        "n = Constant <value_float = 0.0> () "
        "y = Where (e, x, n)"
    )
    agrees(parse(body, "float[N,3,5] x"), 4, 3, 5)


def test_a_branch_that_is_not_taken_may_contradict_itself() -> None:
    """`x.squeeze(1)` of an axis that was free when the model was exported."""
    body = (
        "s = Shape (x) i = Constant <value = int64 {1}> () n = Gather (s, i) c = Equal (n, i) "
        "p = Relu (x) q = If (c) <then_branch = t () => (float[A,B] u) "
        "{ a = Constant <value_ints = [1]> () u = Squeeze (p, a) }, "
        "else_branch = e () => (float[A,B,C] w) { w = Identity (p) }> y = Neg (q)"
    )
    for size in (3, 1):
        agrees(parse(body, "float[2,W,5] x"), 2, size, 5, bound=True)


@pytest.mark.parametrize(("opset", "values"), [(18, 2), (20, 2), (21, 4), (23, 4)])
@pytest.mark.parametrize("batch", ["2", "N"])
def test_group_norm_of_any_opset(opset: int, values: int, batch: str) -> None:
    spread = ", ".join(["0.5", "1.5", "2.0", "3.0"][:values])
    ends = ", ".join(["0.1", "0.2", "0.3", "0.4"][:values])
    body = (
        f"s = Constant <value_floats = [{spread}]> () b = Constant <value_floats = [{ends}]> () "
        "n = GroupNormalization <num_groups = 2, epsilon = 0.001> (x, s, b) y = Relu (n)"
    )
    agrees(parse(body, f"float[{batch},4,3,3] x", opset), 2, 4, 3, 3)


def test_only_onnx_itself_calls_an_export_broken() -> None:
    """What the file settles by itself; what --shape does to it; a batch that it does not take."""
    table = "t = Constant <value_floats = [1.0, 2.0]> () y = Add (x, t)"
    with pytest.raises(ModelError, match=r"not a valid ONNX graph.*Add.*export is broken"):
        normalize(parse(table, "float[2,3] x"))
    with pytest.raises(ModelError, match=r"contradict each other.* at Add") as error:
        normalize(parse(table, "float[2,H] x"), shapes={"x": (2, 3)})
    assert "broken" not in str(error.value)
    joined = "t = Constant <value = float[3,2] {1, 2, 3, 4, 5, 6}> () y = Concat <axis = 1> (x, t)"
    with pytest.raises(ModelError, match="contradict each other") as error:
        normalize(parse(joined, "float[N,3] x"))
    assert "broken" not in str(error.value)


def test_a_reshape_that_loses_values_is_seen() -> None:
    """ONNX's inference takes it."""
    body = "t = Constant <value_ints = [2, 4]> () y = Reshape (x, t)"
    with pytest.raises(ModelError, match="takes 10 values of each image and gives 8"):
        normalize(parse(body, "float[2,W] x"), shapes={"x": (2, 5)})


@pytest.mark.parametrize("op", ["Mod", "Div"])
def test_integers_divided_by_zero_are_named(op: str) -> None:
    """ONNX Runtime's Mod ends the process."""
    stored = "a = Constant <value_ints = [7]> () z = Constant <value_ints = [0]> () "
    with pytest.raises(ModelError, match=f"{op} 'd' divides integers by 0"):
        normalize(parse(stored + f"[d] q = {op} (a, z) y = Cast <to = 1> (q)", "float[1] x"))
    live = f"i = Cast <to = 7> (x) [d] q = {op} (i, z) y = Cast <to = 1> (q)"
    with pytest.raises(ModelError, match=f"{op} 'd' divides integers by 0"):
        normalize(parse(stored + live, "float[1] x"))


def test_a_batch_at_which_integers_are_divided_by_zero_is_left_out() -> None:
    """n mod (n − 1) is 1 for every batch but 1, where ONNX Runtime would end the process."""
    body = (
        "s = Shape (x) i = Constant <value_ints = [0]> () o = Constant <value_ints = [1]> () "
        "n = Gather (s, i) m = Sub (n, o) r = Mod (n, m) f = Cast <to = 1> (r) y = Add (x, f)"
    )
    found = normalize(parse(body, "float[N,2] x"))
    assert "Mod" in [n.op for n in found.graph.nodes]


def test_a_vector_of_scales_keeps_its_axis() -> None:
    """Logits [keys, queries] that are quantised by head are not turned."""
    body = (
        "s = Constant <value_floats = [0.05, 0.1]> () t = Transpose <perm = [0, 1, 3, 2]> (x) "
        "l = MatMul (x, t) z = Constant <value = uint8[2] {100, 120}> () "
        "q = QuantizeLinear <axis = 1> (l, s, z) d = DequantizeLinear <axis = 1> (q, s, z) "
        "p = Softmax <axis = 2> (d) y = MatMul (t, p)"
    )
    agrees(parse(body, "float[2,2,5,4] x"), 2, 2, 5, 4)


# ---- old opsets ----------------------------------------------------------------------------------


def old_vit(opset: int, batch: int | None = None) -> onnx.ModelProto:
    """The tiny ViT as an exporter of that opset wrote it: LayerNorm in parts, IR of its time."""
    spec = VitSpec(depth=2)
    model = build_vit(spec, random_weights(spec), batch=batch)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "LayerNormalization":
            nodes.append(node)
            continue
        (x, scale, bias), out = node.input, node.output[0]
        made = helper.make_node
        nodes += [
            made("ReduceMean", [x], [f"{out}/m"], axes=[-1]),
            made("Sub", [x, f"{out}/m"], [f"{out}/c"]),
            made("Mul", [f"{out}/c", f"{out}/c"], [f"{out}/s"]),
            made("ReduceMean", [f"{out}/s"], [f"{out}/v"], axes=[-1]),
            made("Add", [f"{out}/v", "epsilon"], [f"{out}/e"]),
            made("Sqrt", [f"{out}/e"], [f"{out}/d"]),
            made("Div", [f"{out}/c", f"{out}/d"], [f"{out}/n"]),
            made("Mul", [f"{out}/n", scale], [f"{out}/w"]),
            made("Add", [f"{out}/w", bias], [out]),
        ]
    kept = [deep(n) for n in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    epsilon = numpy_helper.from_array(np.asarray(1e-6, np.float32), "epsilon")
    model.graph.initializer.append(epsilon)
    for tensor in model.graph.initializer:  # weights were inputs too
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    model.opset_import[0].version, model.ir_version = opset, 3
    return model


def deep(node: onnx.NodeProto) -> onnx.NodeProto:
    return onnx.NodeProto.FromString(node.SerializeToString())


@pytest.mark.parametrize("opset", [9, 11, 12])
def test_old_opsets_are_read_as_converted(opset: int, tmp_path: Path) -> None:
    model = old_vit(opset)
    path = tmp_path / "old.onnx"
    onnx.save(model, path)
    read = pipeline.read(path)
    assert [len(read.analysis.blocks), read.analysis.shape.tokens] == [2, 17]
    x = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    want, have = (
        ort.InferenceSession(m.SerializeToString()).run(None, {"image": x})[0]
        for m in (model, to_onnx(read.graph))
    )
    np.testing.assert_allclose(have, want, atol=1e-4)
    assert f"opset {opset}" in " ".join(pipeline.plan(path, keep=0.5, method="topk").notes)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scale", [0.6, 1.5, 2.0])
def test_resize_samples_where_it_did(mode: str, scale: float) -> None:
    """The converter leaves it at modes that were not there before opset 11."""
    body = f'y = Resize <mode = "{mode}"> (x, s)'
    model = parse(body, "float[1,2,5,5] x", 10)
    sizes = np.asarray([1, 1, scale, scale], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(sizes, "s"))
    x = np.random.default_rng(0).normal(size=(1, 2, 5, 5)).astype(np.float32)
    want, have = (
        ort.InferenceSession(m.SerializeToString()).run(None, {"x": x})[0]
        for m in (model, to_known_opset(model)[0])
    )
    np.testing.assert_allclose(have, want, atol=1e-6)


TO_SIZE = (
    "d = Shape (x) f = Cast <to = 1> (d) i = Constant <value = int64[2] {2, 3}> () "
    "h = Gather (f, i) t = Constant <value = float[2] {%s}> () r = Div (t, h) "
    "o = Constant <value = float[2] {1.0, 1.0}> () s = Concat <axis = 0> (o, r) "
    'y = Resize <mode = "nearest"> (x, s)'
)


@pytest.mark.parametrize("batch", ["2", "N"])
@pytest.mark.parametrize("size", ["3.0, 3.0", "8.0, 7.0", "8.0, 5.0"])
def test_resize_to_a_size_samples_where_it_did(size: str, batch: str) -> None:
    """Its scales are computed."""
    agrees(parse(TO_SIZE % size, f"float[{batch},2,5,5] x", 10), 2, 2, 5, 5)


@pytest.mark.parametrize(
    ("scales", "dims"), [("0.5, 1.5", "5,5"), ("1.0, 0.6", "5,5"), ("2.0, 1.0", "5,5")]
)
def test_resize_of_one_axis_samples_where_it_did(scales: str, dims: str) -> None:
    body = (
        f"s = Constant <value = float[4] {{1.0, 1.0, {scales}}}> () "
        'y = Resize <mode = "nearest"> (x, s)'
    )
    agrees(parse(body, f"float[1,2,{dims}] x", 10), 1, 2, 5, 5)


def test_resize_that_rounds_in_two_ways_is_named() -> None:
    body = (
        "s = Constant <value = float[4] {1.0, 1.0, 0.6, 1.5}> () "
        'y = Resize <mode = "nearest"> (x, s)'
    )
    with pytest.raises(ModelError, match="Resize 'y' makes one axis longer and another"):
        normalize(parse(body, "float[1,2,5,5] x", 10))


def test_resize_by_what_is_not_known_is_named() -> None:
    with pytest.raises(ModelError, match="computes its scales") as error:
        normalize(parse(TO_SIZE % "8.0, 8.0", "float[1,2,H,5] x", 10), shapes={"x": (1, 2, 9, 5)})
    assert "opset 11" in str(error.value)
    grows = parse((TO_SIZE % "18.0, 7.0").replace("Resize", "Upsample"), "float[1,2,H,5] x", 9)
    assert normalize(grows, shapes={"x": (1, 2, 9, 5)}).graph.nodes


@pytest.mark.parametrize("axis", ["", "<axis = 1>", "<axis = -2>", "<axis = 2>", "<axis = 0>"])
def test_hardmax_finds_the_largest_of_the_axes_that_it_did(axis: str) -> None:
    agrees(parse(f"y = Hardmax {axis} (x)", "float[2,3,4] x", 11), 2, 3, 4)


def test_what_is_not_converted_is_named() -> None:
    model = parse('[mine] y = Upsample <mode = "linear"> (x, x)', "float[1,2,5,5] x", 9)
    model.graph.node[0].op_type = "Upsampled"
    with pytest.raises(ModelError, match="opset 9 cannot be converted to 13 at Upsampled 'mine'"):
        normalize(model)
