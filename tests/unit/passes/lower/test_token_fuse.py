"""Fewer nodes around plugins, and the same numbers to the last bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile import pipeline
from tcompile.core.save import save
from tcompile.passes.lower import lower
from tcompile.passes.lower.token_fuse import fuse_calls
from tcompile.plugins.ops import add_functions
from tcompile.targets import load_target
from tests.support.tiny_vit import VitSpec, save_tiny_vit
from tests.unit.passes.lower.blocks import run


def both(folder: Path, method: str, precision: str, batch: int | None) -> tuple[gs.Graph, gs.Graph]:
    """Native and with plugins, after both were run and agreed."""
    path = save_tiny_vit(folder / "vit.onnx", VitSpec(prefix=2), batch=batch)
    reduced = pipeline.reduce(path, keep=0.6, method=method)
    made, answers = [], []
    for form in ("native", "plugin"):
        graph = lower(
            reduced.graph,
            target=load_target("jetson-orin"),
            precision=precision,  # type: ignore[arg-type]
            fp32_nodes=reduced.fp32_nodes,
            token_ops=form,  # type: ignore[arg-type]
        )
        file = folder / f"{form}.onnx"
        save(graph, file)
        onnx.checker.check_model(onnx.load(str(file)), full_check=True)
        made.append(graph)
        answers.append(run(file))
    for key, value in answers[0].items():
        np.testing.assert_array_equal(answers[1][key], value)
    return made[0], made[1]


def ours(graph: gs.Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes if node.domain == "tcompile")


@pytest.mark.parametrize("batch", [1, None])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("method", "new", "times"),
    [
        ("topk", "TcSelectTokens", 1),
        ("bypass", "TcSelectTokens", 3),
        ("pitome", "TcPartnerTokens", 3),
    ],
)
def test_the_same_numbers(
    tmp_path: Path, method: str, new: str, times: int, precision: str, batch: int | None
) -> None:
    pytest.importorskip("onnxruntime")
    native, plugin = both(tmp_path, method, precision, batch)
    assert ours(native)[new] == 0
    assert ours(plugin)[new] == times
    assert {f.name for f in plugin.functions} == set(ours(plugin))
    assert len(plugin.nodes) <= len(native.nodes) - 3 * times
    if new == "TcSelectTokens":
        assert ours(plugin)["TcTopKTokens"] == 0
        node = next(n for n in plugin.nodes if n.op == new)
        fixed, (index, rows) = node.inputs[1], node.outputs
        assert fixed.values.tolist() == [0, 1]
        assert rows.shape[1] == index.shape[1] + 2


_SELECT = """<ir_version: 8, opset_import: ["": 17, "tcompile": 1]>
g (float[2,10,4] x, float[2,8] scores) => (float[2,6,4] y)
<int64[1] zero = {{0}}, int64[1] p = {{{p}}}, int64[1] q = {{{q}}}, int64[1] n = {{{n}}},
 int64[1] one = {{1}}> {{
  head = Slice (x, zero, p, one)
  tail = Slice ({source}, q, n, one)
  index = tcompile.TcTopKTokens <k: tensor = int64[1] {{4}}> (scores)
  kept = tcompile.TcGatherTokens (tail, index)
  y = Concat <axis = 1> ({order})
}}"""


@pytest.mark.parametrize(
    ("change", "fused"),
    [
        ({}, 1),
        ({"n": 9223372036854775807}, 1),
        ({"q": 1, "n": 9}, 0),  # other rows than those behind the prefix
        ({"order": "kept, head"}, 0),
        ({"source": "other"}, 0),
    ],
)
def test_only_a_prefix_and_its_patches(change: dict[str, object], fused: int) -> None:
    given = {"p": 2, "q": 2, "n": 10, "source": "x", "order": "head, kept", **change}
    text = _SELECT.format(**given)
    if given["source"] == "other":
        text = text.replace("head = Slice", "other = Neg (x)\n  head = Slice")
    graph = gs.import_onnx(onnx.parser.parse_model(text))
    for tensor in graph.tensors().values():
        if tensor.name == "index":
            tensor.shape, tensor.dtype = [2, 4], np.int64
    add_functions(graph)
    assert fuse_calls(graph) == fused
    assert ours(graph)["TcSelectTokens"] == fused


_PARTNER = """<ir_version: 8, opset_import: ["": 17]>
g (float[2,5,4] a, float[2,6,4] b) => (float[2,5] similarity, int64[2,5] partner)
<float[1] tiny = {{1e-12}}, int64[1] one = {{1}}, int64[1] last = {{2}},
 float[1] penalty = {{0.5}}> {{
  la = ReduceL2 <axes = [-1], keepdims = 1> (a)
  ma = Max (la, tiny)
  ua = Div (a, ma)
  lb = ReduceL2 <axes = [-1], keepdims = 1> ({norm})
  mb = Max (lb, tiny)
  ub = Div (b, mb)
  bt = Transpose <perm = [0, 2, 1]> (ub)
  cosine = MatMul ({left}, bt)
  less = Sub (cosine, penalty)
  value, place = TopK <axis = -1, largest = {largest}> ({scores}, one)
  similarity = Squeeze (value, last)
  partner = Squeeze (place, last)
}}"""


@pytest.mark.parametrize(
    ("change", "fused"),
    [
        ({}, 1),
        ({"left": "a"}, 0),
        ({"norm": "other"}, 0),
        ({"scores": "less"}, 0),
        ({"largest": 0}, 0),
        ({"value": "asked for"}, 0),
    ],
)
def test_only_the_largest_of_cosines(tmp_path: Path, change: dict[str, object], fused: int) -> None:
    given = {"norm": "b", "left": "ua", "scores": "cosine", "largest": 1, **change}
    text = _PARTNER.format(**given)
    if given.get("value") == "asked for":
        text = text.replace("int64[2,5] partner)", "int64[2,5] partner, float[2,5,1] value)")
    if given["norm"] == "other":
        text = text.replace("lb = ", "other = Neg (b)\n  lb = ")
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    graph = gs.import_onnx(model)
    assert fuse_calls(graph) == fused
    if fused:
        pytest.importorskip("onnxruntime")
        for name, made in (("a.onnx", model), ("b.onnx", None)):
            if made is not None:
                onnx.save(made, str(tmp_path / name))
            else:
                save(graph, tmp_path / name)
        want, got = run(tmp_path / "a.onnx"), run(tmp_path / "b.onnx")
        np.testing.assert_array_equal(got["partner"], want["partner"])
        np.testing.assert_allclose(got["similarity"], want["similarity"], atol=1e-6)


def test_verify_still_sees_the_choice(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from tcompile.runtime.token_outputs import showing_choice

    both(tmp_path, "topk", "fp32", 1)
    chosen = []
    for form in ("native", "plugin"):
        with showing_choice(tmp_path / f"{form}.onnx") as shown:
            chosen.append(run(shown)["tcompile.chosen"])
    np.testing.assert_array_equal(chosen[0], chosen[1])


@pytest.mark.parametrize("batch", [1, None])
@pytest.mark.parametrize(("method", "means"), [("pitome", 2), ("turbo", 2), ("mctf", 3)])
def test_means_over_groups(tmp_path: Path, method: str, means: int, batch: int | None) -> None:
    """The first merge has no sizes yet: a plain mean where the batch is known."""
    pytest.importorskip("onnxruntime")
    native, plugin = both(tmp_path, method, "fp16", batch)
    assert not any("Combine" in name for name in ours(native))
    assert ours(plugin)["TcCombineMeanTokens"] == means
    assert ours(plugin)["TcCombinePlainTokens"] == (batch == 1 and method != "mctf")
    assert len(plugin.nodes) <= len(native.nodes) - 15 * means
    for node in plugin.nodes:
        if node.op == "TcCombineMeanTokens":
            assert node.inputs[0].dtype == np.float16  # no cast beside it
            assert node.outputs[0].dtype == np.float16


_MEAN = """<ir_version: 8, opset_import: ["": 17, "tcompile": 1]>
g (float[2,6,4] x, float[2,6] w, float[2,6] v, int64[2,4] keep, int64[2,2] source, int64[2,2] slot)
  => (float[2,4,4] y, float[2,4] size)
<int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1,4,1] places = {{{places}}}> {{
  rows = tcompile.TcGatherTokens (x, keep)
  kept = GatherElements <axis = 1> (w, keep)
  kept_column = Unsqueeze (kept, two)
  own = Mul (rows, kept_column)
  others = tcompile.TcGatherTokens (x, source)
  left = GatherElements <axis = 1> (w, source)
  left_column = Unsqueeze (left, two)
  moved = Mul (others, left_column)
  row = Unsqueeze (slot, one)
  equal = Equal (row, places)
  hot = Cast <to = 1> (equal)
  carried = MatMul (hot, moved)
  total = Add (own, carried)
  kept_again = GatherElements <axis = 1> ({kept}, keep)
  first = Unsqueeze (kept_again, two)
  left_again = GatherElements <axis = 1> ({left}, source)
  second = Unsqueeze (left_again, two)
  summed = MatMul (hot, second)
  weights = Add (first, summed)
  y = Div (total, weights)
  sums = Squeeze (weights, two)
  size = Neg (sums)
}}"""


@pytest.mark.parametrize(
    ("kept", "left", "places", "fused"),
    [
        ("w", "w", "0, 1, 2, 3", 1),
        ("v", "w", "0, 1, 2, 3", 0),
        ("w", "v", "0, 1, 2, 3", 0),
        ("v", "v", "0, 1, 2, 3", 0),
        ("w", "w", "0, 2, 1, 3", 0),
    ],
)
def test_only_means_by_the_same_weights(kept: str, left: str, places: str, fused: int) -> None:
    """Tokens that stay and tokens that leave are both divided by the weights they have above."""
    text = _MEAN.format(kept=kept, left=left, places=places)
    graph = gs.import_onnx(onnx.parser.parse_model(text))
    add_functions(graph)
    assert fuse_calls(graph) == fused
    assert ours(graph)["TcCombineMeanTokens"] == fused
    (negated,) = (t.inputs[0] for t in graph.outputs if t.name == "size")
    assert negated.i().op == ("TcCombineMeanTokens" if fused else "Squeeze")
