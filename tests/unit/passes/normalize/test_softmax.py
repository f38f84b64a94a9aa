"""What is a softmax by hand, and what is not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from tcompile.passes.normalize import normalize
from tests.oracles.compare import infer
from tests.support.onnx_models import to_onnx

_HEAD = '<ir_version: 9, opset_import: ["" : 17]> g (float[2,5,5] x) => (float[2,5,5] y)\n'
_HEAD += "<int64[1] last = {2}, float one = {1}, float small = {1e-9}, float less = {-0.5}, "
_HEAD += "float[5] each = {1,2,3,4,5}>"


def _ops(body: str) -> Counter[str]:
    """The operators of the normal form, which computes the same."""
    model = onnx.parser.parse_model(f"{_HEAD} {{ {body} }}")
    feed = {"x": np.random.default_rng(0).standard_normal((2, 5, 5)).astype(np.float32) * 3}
    wanted = infer(model, feed)["y"]
    graph = normalize(model).graph
    assert np.allclose(infer(to_onnx(graph), feed)["y"], wanted, rtol=1e-5, atol=1e-7)
    return Counter(str(n.op) for n in graph.nodes)


_EXP = "e = Exp (x) s = ReduceSum (e, last) "
_MAX = "m = ReduceMax <axes = [2]> (x) d = Sub (x, m) e = Exp (d) s = ReduceSum (e, last) "
_SOFTMAX = {
    "exp": _EXP + "y = Div (e, s)",
    "largest taken off": _MAX + "y = Div (e, s)",
    "reciprocal": _EXP + "r = Reciprocal (s) y = Mul (r, e)",
    "an epsilon that is lost": _MAX + "t = Add (small, s) y = Div (e, t)",
    "a bound that is never met": _MAX + "t = Max (s, one) y = Div (e, t)",
    "log": "l = LogSoftmax <axis = 2> (x) y = Exp (l)",
    "log of the sum": "l = ReduceLogSumExp <axes = [2]> (x) d = Sub (x, l) y = Exp (d)",
    "absolute values": "e = Exp (x) s = ReduceL1 <axes = [2]> (e) y = Div (e, s)",
}


@pytest.mark.parametrize("name", _SOFTMAX)
def test_a_softmax_by_hand_is_a_softmax(name: str) -> None:
    assert _ops(_SOFTMAX[name]) == {"Softmax": 1}


_OTHERS = {
    "another sum": _EXP + "t = Mul (s, s) y = Div (e, t)",
    "of something else": "a = Abs (x) f = Exp (a) e = Exp (x) s = ReduceSum (f, last) "
    "y = Div (e, s)",
    "over two axes": "e = Exp (x) s = ReduceSum (e) y = Div (e, s)",
    "an epsilon that counts": _EXP + "t = Max (small, s) y = Div (e, t)",
    "less than the sum": _MAX + "t = Add (s, less) y = Div (e, t)",
    "an upper bound": _MAX + "t = Clip (s, , one) y = Div (e, t)",
    "other weights": "w = Mul (x, each) e = Exp (w) f = Mul (e, each) s = ReduceSum (f, last) "
    "y = Div (e, s)",
}


@pytest.mark.parametrize("name", _OTHERS)
def test_what_only_looks_like_one_stays(name: str) -> None:
    assert _ops(_OTHERS[name])["Softmax"] == 0


def test_a_sum_and_one_is_one_more_column() -> None:
    ops = _ops(_EXP + "t = Add (s, one) y = Div (e, t)")
    assert (ops["Softmax"], ops["Concat"], ops["Slice"], ops["Exp"]) == (1, 1, 1, 0)


@pytest.mark.parametrize("axes", ["axes = [1, 2]", "keepdims = 1", "keepdims = 0"])
def test_what_is_taken_off_may_be_one_for_several_sums(axes: str) -> None:
    largest = f"m = ReduceMax <{axes}> (x) d = Sub (x, m) e = Exp (d) s = ReduceSum (e, last) "
    ops = _ops(largest + "t = Add (s, one) y = Div (e, t)")
    assert (ops["Softmax"], ops["Concat"], ops["Expand"]) == (1, 1, 1)
