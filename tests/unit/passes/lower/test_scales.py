"""Scales of channels in the matrix in front of them, and transposes without joined axes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest

from tcompile.passes.lower.scales import fold_scales
from tcompile.passes.lower.turns import merge_turns
from tests.support.onnx_models import plain_options, to_onnx

HEAD = '<ir_version: 9, opset_import: ["" : 18]>\ng '
WEIGHTS = "float[3,4] w = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4] b = {1,2,3,4}"
SCALES = "float[1,1,4] gamma = {0.5,-2,0,3}, float[2,1] rows = {2,3}, float[1] one = {2}, "
SCALES += "float[1,1,1,4] wide = {1,2,3,4}"

FOLDED = {
    "scale": "p = MatMul (x, w) y = Mul (p, gamma)",
    "scale and bias": "p = MatMul (x, w) a = Add (p, b) y = Mul (gamma, a)",
    "twice": "p = MatMul (x, w) a = Add (b, p) s = Mul (a, gamma) y = Mul (s, b)",
}
LEFT = {
    "one number": "p = MatMul (x, w) y = Mul (p, one)",
    "a scale a row": "p = MatMul (x, w) y = Mul (p, rows)",
    "more axes than the product": "p = MatMul (x, w) y = Mul (p, wide)",
    "read elsewhere": "p = MatMul (x, w) s = Mul (p, gamma) y = Add (p, s)",
    "its sum is read elsewhere": "p = MatMul (x, w) a = Add (p, b) s = Mul (a, b) y = Sub (s, a)",
    "a sum of activations": "p = MatMul (x, w) a = Add (p, p) y = Mul (a, gamma)",
    "no stored matrix": "t = MatMul (x, w) u = Transpose <perm = [0,2,1]> (t) "
    "p = MatMul (u, t) y = Mul (p, b)",
}


def graph(body: str) -> gs.Graph:
    text = f"{HEAD}(float[2,2,3] x) => (float[2,d1,4] y)\n<{WEIGHTS}, {SCALES}>\n{{ {body} }}"
    return gs.import_onnx(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def value(made: gs.Graph, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(
        to_onnx(made).SerializeToString(), plain_options(), providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {made.inputs[0].name: x})[0])


@pytest.mark.parametrize("body", FOLDED.values(), ids=FOLDED)
def test_a_scale_a_channel_is_folded(body: str) -> None:
    made, x = graph(body), np.random.default_rng(0).standard_normal((2, 2, 3)).astype(np.float32)
    want = value(made, x)
    assert fold_scales(made) == body.count(" = Mul (")
    assert "Mul" not in {node.op for node in made.nodes}
    np.testing.assert_allclose(value(made, x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("body", LEFT.values(), ids=LEFT)
def test_anything_else_is_left_alone(body: str) -> None:
    made = graph(body)
    before = [node.op for node in made.nodes]
    assert fold_scales(made) == 0
    assert [node.op for node in made.nodes] == before


def test_a_matrix_that_others_read_stays_one() -> None:
    made = graph("p = MatMul (x, w) s = Mul (p, gamma) q = MatMul (x, w) y = Add (s, q)")
    assert fold_scales(made) == 0
    assert len({id(n.inputs[1]) for n in made.nodes if n.op == "MatMul"}) == 1


def test_a_product_that_is_an_output_is_left_alone() -> None:
    made = graph("p = MatMul (x, w) y = Mul (p, gamma)")
    made.outputs.append(next(n for n in made.nodes if n.op == "MatMul").outputs[0])
    assert fold_scales(made) == 0


TURN = "f = Reshape (k, joined) t = Transpose <perm = [0,2,1]> (f) y = Reshape (t, apart)"


@pytest.mark.parametrize(
    ("joined", "apart", "found"),
    [((6, 5, 4), (2, 3, 4, 5), 1), ((6, 4, 5), (2, 3, 5, 4), 0), ((6, 5, 4), (3, 2, 4, 5), 0)],
    ids=["turned", "rows are not rows", "heads before batch"],
)
def test_turned_as_they_are(joined: tuple[int, ...], apart: tuple[int, ...], found: int) -> None:
    dims = ",".join(map(str, apart))
    shapes = f"int64[3] joined = {{{','.join(map(str, joined))}}}, int64[4] apart = {{{dims}}}"
    text = f"{HEAD}(float[2,3,5,4] k) => (float[{dims}] y)\n<{shapes}>\n{{ {TURN} }}"
    made = gs.import_onnx(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    k = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    want = value(made, k)
    assert merge_turns(made) == found
    np.testing.assert_array_equal(value(made, k), want)
    assert ("Reshape" in {node.op for node in made.nodes}) != bool(found)
