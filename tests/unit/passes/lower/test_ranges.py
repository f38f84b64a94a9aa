"""What stays in fp32 for its range, and products that are scaled before they are taken."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tcompile.builder.on_images import note_of, ranges_on
from tcompile.core.progress import silent
from tcompile.passes.lower.ranges import LIMIT, Range, Wide, scale_first, wide_nodes
from tcompile.passes.lower.types import complete
from tcompile.runtime.samples import Samples
from tcompile.targets.backends.ort import OrtRunner
from tests.support.onnx_models import to_onnx
from tests.unit.passes.lower.blocks import parse, save

ATTENTION = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[N,5,4] q, float[N,4,5] k, float[N,5,4] v, bool[1,1,5] seen) => (float[N,5,4] y)
<float far = {-1e9}, float none = {0.0}, float by = {%s}>
{
   dots = MatMul (q, k)
   scaled = %s (dots, by)
   mask = Where (seen, none, far)
   masked = Add (scaled, mask)
   soft = Softmax <axis = -1> (masked)
   mixed = MatMul (soft, v)
   y = Exp (mixed)
}
"""


def attention(op: str = "Mul", by: str = "0.125") -> gs.Graph:
    graph = gs.import_onnx(parse(ATTENTION % (by, op)))
    complete(graph)
    for node in graph.nodes:
        node.name = node.outputs[0].name
    return graph


def images(size: float = 100.0, count: int = 3) -> Samples:
    rng = np.random.default_rng(0)
    q, v = (rng.normal(size=(count, 5, 4)).astype(np.float32) for _ in range(2))
    k = rng.normal(size=(count, 4, 5)).astype(np.float32)
    seen = np.array([[[[True, True, True, True, False]]]] * count).reshape(count, 1, 1, 5)
    return Samples({"q": size * q, "k": size * k, "v": v, "seen": seen[:, 0]}, "three", real=True)


def ranges(graph: gs.Graph, given: Samples) -> dict[str, Range]:
    return ranges_on(given, {}, silent, graph)


def test_ranges_are_those_of_all_images() -> None:
    graph, given = attention(), images(3.0)
    found = ranges(graph, given)
    dots = given.arrays["q"] @ given.arrays["k"]
    assert found["dots"].low == pytest.approx(dots.min(), rel=1e-5)
    assert found["dots"].high == pytest.approx(dots.max(), rel=1e-5)
    assert found["mask"] == Range(-1e9, 0.0)
    assert set(found) == {"q", "k", "v", *(n.outputs[0].name for n in graph.nodes)}
    assert graph.outputs[0].name == "y"
    assert len(graph.nodes) == 7  # the graph itself is as it was


def test_only_what_leaves_the_range_is_wide() -> None:
    graph, given = attention(), images()
    found = wide_nodes(graph, ranges(graph, given))
    # The mask means minus infinity: clamped, it means the same.
    assert set(found) == {"dots", "scaled"}
    assert found["dots"] > LIMIT
    assert not wide_nodes(graph, ranges(graph, images(3.0)))


def test_who_reads_a_wide_value_is_in_fp32_too() -> None:
    graph = attention()
    known = {"scaled": Range(0.0, 2 * LIMIT)}
    assert set(wide_nodes(graph, known)) == {"scaled", "masked"}
    assert set(wide_nodes(graph, {"mixed": Range(math.nan, math.nan)})) == {"mixed", "y"}
    assert set(wide_nodes(graph, {"mixed": Range(-math.inf, 0.0)})) == {"mixed", "y"}
    assert set(wide_nodes(graph, {"mixed": Range(0.0, math.nan)})) == {"mixed", "y"}
    assert "dots" in wide_nodes(graph, {"q": Range(0.0, 9e4)})  # what is given is cast, too


def test_only_a_mask_may_be_minus_infinity() -> None:
    graph = attention()
    assert not wide_nodes(graph, {"masked": Range(-1e9, 5.0), "mask": Range(-math.inf, 0.0)})
    assert "masked" in wide_nodes(graph, {"masked": Range(-1e9, 2 * LIMIT)})
    # Scores themselves, of which a row may be all that low.
    assert set(wide_nodes(graph, {"scaled": Range(-1e5, 0.0)})) == {"scaled", "masked"}
    graph.outputs.append(graph.tensors()["masked"])
    assert set(wide_nodes(graph, {"masked": Range(-1e9, 5.0)})) == {"masked"}


def test_empty_tensors_have_no_range() -> None:
    graph = gs.import_onnx(
        parse("""
<ir_version: 9, opset_import: ["" : 18]>
g (float[N,5] x) => (float[N,5] y)
<int64[1] none = {0}, int64[1] axis = {1}>
{
   empty = Slice (x, none, none, axis)
   y = Concat <axis = 1> (empty, x)
}
""")
    )
    complete(graph)
    x = np.ones((2, 5), np.float32)
    assert set(ranges(graph, Samples({"x": x}, "ones", real=True))) == {"x", "y"}
    assert math.isnan(Range(0.0, 1.0).joined(Range(math.nan, 1.0)).high)
    assert Range(-1.0, 0.0).joined(Range(0.0, 2.0)) == Range(-1.0, 2.0)


@pytest.mark.parametrize(("op", "by"), [("Mul", "0.125"), ("Div", "8.0")])
def test_a_product_is_scaled_before_it_is_taken(tmp_path: Path, op: str, by: str) -> None:
    graph, given = attention(op, by), images()
    before = save(to_onnx(graph), tmp_path, "before.onnx")
    known = ranges(graph, given)
    known["scaled"] = Range(known["dots"].low / 8, known["dots"].high / 8)
    assert scale_first(graph, known) == 1
    assert [n.op for n in graph.nodes[:2]] == ["Mul", "MatMul"]
    assert op != "Div" or "Div" not in [n.op for n in graph.nodes]
    assert "dots" not in graph.tensors()
    assert not wide_nodes(graph, known)
    feed = {name: array[:1] for name, array in given.arrays.items()}
    made = save(to_onnx(graph), tmp_path)
    a, b = (OrtRunner(path).run(feed)["y"] for path in (before, made))
    assert np.allclose(a, b, rtol=1e-4)


def test_products_that_are_left_as_they_are() -> None:
    q = {"q": Range(-100.0, 100.0)}
    fits = {**q, "dots": Range(0.0, LIMIT), "scaled": Range(0.0, LIMIT / 8)}
    large = {**q, "dots": Range(0.0, 100 * LIMIT), "scaled": Range(0.0, 12 * LIMIT)}
    helps = {**q, "dots": Range(0.0, 4 * LIMIT), "scaled": Range(0.0, LIMIT / 2)}
    wide = {**helps, "q": Range(-9 * LIMIT, 0.0)}  # an eighth of it does not fit either
    assert scale_first(attention(), wide) == 0
    assert scale_first(attention(), fits) == 0
    assert scale_first(attention(), large) == 0
    assert scale_first(attention(), helps, frozenset({"dots"})) == 0
    shown = attention()
    shown.outputs.append(shown.tensors()["dots"])
    assert scale_first(shown, helps) == 0
    divided = attention("Div", "8.0")
    divided.nodes[1].inputs = divided.nodes[1].inputs[::-1]  # 8 / dots
    assert scale_first(divided, helps) == 0
    assert scale_first(attention(), helps) == 1


def test_notes_say_what_it_rests_on() -> None:
    graph, given = attention(), images()
    wide = Wide(lambda g: ranges(g, given))
    assert wide.look(graph, frozenset({"dots"})) == frozenset({"dots", "scaled"})
    said = note_of(wide, given)
    assert said.startswith("mixed: 2 of 7 nodes stay in fp32, whose values are beyond 16376")
    assert "on three: 'dots' (" in said
    assert wide.look(graph, frozenset()) == frozenset()
    said = note_of(wide, given)
    assert said.startswith("mixed: no node has to stay in fp32 for values beyond 16376")
    assert said.endswith("on three; 1 product is scaled before it is taken")
    narrow = Wide(lambda g: {})
    assert narrow.look(graph, frozenset()) == frozenset()
    assert note_of(narrow, given).startswith("mixed: no node has to stay in fp32")
