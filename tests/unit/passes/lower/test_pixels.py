"""8-bit images are cast before they are moved: the same values, and TensorRT parses the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tcompile.passes.lower.pixels import cast_pixels_first
from tcompile.targets.backends.ort import OrtRunner
from tcompile.targets.backends.parsing import parse_elsewhere
from tests.support.onnx_models import to_onnx
from tests.unit.passes.lower.blocks import parse, save

HEAD = '<ir_version: 10, opset_import: ["":20]>\n'
FRAMES = {
    "channels last": """g (uint8[2,4,6,3] x) => (float[2,3,4,6] y) {
        t = Transpose<perm=[0,3,1,2]>(x)  y = Cast<to=1>(t) }""",
    "BGR": """g (uint8[2,3,4,6] x) => (float[2,3,4,6] y) <int64[3] i = {2,1,0}> {
        t = Gather<axis=1>(x, i)  y = Cast<to=1>(t) }""",
    "cropped and mirrored": """g (uint8[2,3,4,6] x) => (float[2,3,4,4] y)
        <int64[1] a = {5}, int64[1] b = {1}, int64[1] c = {3}, int64[1] s = {-1}> {
        t = Slice(x, a, b, c, s)  y = Cast<to=1>(t) }""",
    "padded": """g (uint8[1,3,1,2] x) => (float[1,3,2,2] y)
        <uint8[1,3,1,2] black = {7,7,7,7,255,7}> {
        t = Concat<axis=2>(x, black)  y = Cast<to=1>(t) }""",
    "flat": """g (uint8[2,72] x) => (float[2,3,4,6] y) <int64[4] d = {2,3,4,6}> {
        t = Reshape(x, d)  y = Cast<to=1>(t) }""",
    "into an integer": """g (uint8[2,72] x) => (int64[72,2] y) {
        t = Transpose<perm=[1,0]>(x)  y = Cast<to=7>(t) }""",
    "two readers": """g (uint8[2,72] x) => (float[72,2] y, float[2,72] z) {
        t = Transpose<perm=[1,0]>(x)  y = Cast<to=1>(t)  z = Cast<to=1>(x) }""",
    "two cameras": """g (uint8[1,3,4,6] x, uint8[1,4,6,3] w) => (float[2,3,4,6] y) {
        b = Transpose<perm=[0,3,1,2]>(w)  t = Concat<axis=0>(x, b)  y = Cast<to=1>(t) }""",
    "joined to itself": """g (uint8[2,72] x) => (float[2,144] y) {
        a = Identity(x)  t = Concat<axis=1>(x, a)  y = Cast<to=1>(t) }""",
}


@pytest.mark.parametrize("frame", FRAMES)
def test_the_values_are_the_same(frame: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = parse(HEAD + FRAMES[frame])
    before = OrtRunner(save(model, tmp_path))
    rng = np.random.default_rng(0)
    feed = {i.name: rng.integers(0, 256, i.shape).astype(np.uint8) for i in before.inputs}
    want = before.run(feed)
    graph = gs.import_onnx(model)
    assert cast_pixels_first(graph) == len(feed)
    path = save(to_onnx(graph.toposort()), tmp_path)
    have = OrtRunner(path).run(feed)
    for name, array in want.items():
        np.testing.assert_array_equal(have[name], array)
        assert have[name].dtype == array.dtype
    assert parse_elsewhere(path) == ()


@pytest.mark.parametrize(
    "text",
    [
        "g (uint8[4] x) => (float[4] y) { y = Cast<to=1>(x) }",
        "g (uint8[4] x) => (float[4] y) { t = Mul(x, x)  y = Cast<to=1>(t) }",
        "g (uint8[4] x) => (uint8[4] t, float[4] y) { t = Identity(x)  y = Cast<to=1>(t) }",
        """g (uint8[4] x, uint8[4] w) => (float[8] y) {
       v = Add(w, w)  t = Concat<axis=0>(x, v)  y = Cast<to=1>(t) }""",
        "g (int8[4] x) => (float[4] y) { t = Identity(x)  y = Cast<to=1>(t) }",
    ],
)
def test_what_is_not_only_moved_stays_as_it_is(text: str) -> None:
    graph = gs.import_onnx(parse(HEAD + text))
    ops = [node.op for node in graph.nodes]
    assert cast_pixels_first(graph) == 0
    assert [node.op for node in graph.nodes] == ops
