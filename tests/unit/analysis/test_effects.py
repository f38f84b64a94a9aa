"""Effects of a reduction downstream: edits, and barriers named by node. Graphs in ONNX text."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile.analysis.effect_walk import effects
from tcompile.analysis.effects import Pool, SetGather, SetShape, SetSlice, SetSplit, Side
from tcompile.analysis.model import Analysis, analyse
from tcompile.analysis.ops import mixed_axes
from tcompile.core.errors import ModelError
from tcompile.core.graph import reduced_axes
from tcompile.passes.normalize import normalize
from tests.support.tiny_vit import VitSpec, build_vit, random_weights

#: One block of attention over 1 CLS + 4×4 patches of width 8, one head; TAIL follows the stream s.
HEAD = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[1,3,8,8] image) => (float y)
<float[8,3,2,2] patch, float[1,1,8] cls, float[1,17,8] table, float[8,8] wq, float[8,8] wk,
 float[8,8] wv, float[8,8] w1, float[17,17] mixer, float[1,17,8] late, float[8] gamma,
 int64[3] flat = {{1, 8, 16}}, int64[4] grid = {{1, 4, 4, 8}}, int64[2] parts = {{1, 16}},
 int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] end = {{9999}}, int64[1] five = {{5}},
 int64[1] six = {{6}}, int64 scalar = {{0}}, int64 third = {{3}}, int64[17] shuffled
 = {{0,2,1,3,4,5,6,7,8,9,10,11,12,13,14,15,16}}>
{{
  conv = Conv <strides = [2, 2]> (image, patch)
  rows = Reshape (conv, flat)
  patches = Transpose <perm = [0, 2, 1]> (rows)
  joined = Concat <axis = 1> (cls, patches)
  x = Add (joined, table)
  q = MatMul (x, wq)
  k = MatMul (x, wk)
  v = MatMul (x, wv)
  kt = Transpose <perm = [0, 2, 1]> (k)
  logits = MatMul (q, kt)
  p = Softmax <axis = -1> (logits)
  mixed = MatMul (p, v)
  s = Add (x, mixed)
  {tail}
}}
"""


def analysed(tail: str) -> tuple[gs.Graph, Analysis]:
    """The block with a tail on its stream, its float tensors filled with random weights."""
    model = onnx.parser.parse_model(HEAD.format(tail=tail))
    rng = np.random.default_rng(0)
    for info in list(model.graph.value_info):
        dims = [d.dim_value for d in info.type.tensor_type.shape.dim]
        weights = rng.normal(size=dims).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, info.name))
        model.graph.value_info.remove(info)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    graph = normalize(model).graph
    return graph, analyse(graph)


def reason(tail: str) -> str:
    site = analysed(tail)[1].site("attn:0")
    assert site is not None
    return site.reason


def edits_of(tail: str) -> list[object]:
    graph, found = analysed(tail)
    site = found.site("attn:0")
    assert site is not None
    assert site.legal, site.reason
    result = effects(graph, found.facts, found.space, found.attentions, [site.tensor])
    return [edit for group in result.edits.values() for edit in group]


def test_structure() -> None:
    _, found = analysed("y = Gather <axis = 1> (s, scalar)")
    assert (found.space.total, found.space.prefix, found.space.grid) == (17, 1, (4, 4))
    assert found.has_cls
    assert len(found.blocks) == 1


@pytest.mark.parametrize(
    ("tail", "kind"),
    [
        ("c = Gather <axis = 1> (s, scalar)\n y = Relu (c)", SetGather),
        ("c = Slice (s, one, end, one)\n y = ReduceMean <keepdims = 0> (c, one)", SetSlice),
        ("y = ReduceMean <keepdims = 0> (s, one)", Pool),
        ("a, c = Split <axis = 1> (s, parts)\n y = ReduceMean <keepdims = 0> (c, one)", SetSplit),
        ("c = Add (s, late)\n y = Gather <axis = 1> (c, scalar)", Side),
        ("f = Reshape <allowzero = 0> (s, two_d)\n m = MatMul (f, w1)\n y = Relu (m)", SetShape),
    ],
)
def test_edits(tail: str, kind: type) -> None:
    if "two_d" in tail:
        tail = "two_d = Constant <value_ints = [17, 8]> ()\n" + tail
    assert kind in {type(e) for e in edits_of(tail)}


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (
            "c = Slice (s, one, end, one)\n g4 = Reshape (c, grid)\n y = Relu (g4)",
            "Relu '.*' gives a grid, which fewer tokens do not fill",
        ),
        (
            "c = Slice (s, one, end, one)\n g4 = Reshape (c, grid)\n"
            " y = ReduceMax <keepdims=0> (g4, two)",
            "splits or permutes the token axis",
        ),
        (
            "c = Slice (s, one, end, one)\n g4 = Reshape (c, grid)\n"
            " y = Transpose <perm = [0, 2, 1, 3]> (g4)",
            "splits or permutes the token axis",
        ),
        ("y = Gather <axis = 1> (s, third)", "particular patch tokens"),
        ("y = Slice (s, five, six, one)", "particular patch tokens|splits"),
        ("y = Gather <axis = 1> (s, shuffled)", "particular patch tokens"),
        ("y = MatMul (mixer, s)", "mixes tokens with a stored matrix"),
        ("y = CumSum (s, scalar1)", "accumulates over tokens"),
        ("y = LogSoftmax <axis = 1> (s)", "normalises over tokens"),
        ("y = LpNormalization <axis = -2> (s)", "normalises over tokens"),
        ("m = MatMul (s, kt)\n y = Relu (m)", "joins reduced tokens with 'kt', which has others"),
        ("y = ReduceProd <keepdims = 0> (s, one)", "not meaningful on fewer tokens"),
        (
            "t = Transpose <perm = [0, 2, 1]> (s)\n y = LpPool <kernel_shape = [2]> (t)",
            "neighbourhood",
        ),
    ],
)
def test_barriers_name_the_reason(tail: str, words: str) -> None:
    if "two" in tail:
        tail = "two = Constant <value_ints = [2]> ()\n" + tail
    if "scalar1" in tail:
        tail = "scalar1 = Constant <value_int = 1> ()\n" + tail
    assert re.search(words, reason(tail)), reason(tail)


def test_statistics_of_a_norm_lose_the_normed_axes() -> None:
    _, found = analysed("n, mean, spread = LayerNormalization (s, gamma)\n y = Relu (mean)")
    assert found.facts.axes["mean"] == (*found.facts.axes["s"][:2], ())
    assert found.sites[0].legal


def test_an_op_without_a_transfer_function_is_named() -> None:
    text = reason("y, i = TopK <axis = 1> (s, five)")
    assert "TopK" in text


def test_no_transformer_is_one_line() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[1,3,8,8] x) => (float[1,3,8,8] y) '
        "{ y = Relu (x) }"
    )
    with pytest.raises(ModelError, match="no transformer found"):
        analyse(normalize(model).graph)


def test_a_mask_among_the_inputs_follows_the_tokens() -> None:
    """It lines up with the keys; a merged token is masked as the one it was merged into."""
    model = build_vit(VitSpec(depth=2), random_weights(VitSpec(depth=2)))
    mask = onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, [1, 1, 1, 17])
    model.graph.input.append(mask)
    second = [n for n in model.graph.node if n.op_type == "Softmax"][1]
    at = list(model.graph.node).index(second)
    add = onnx.helper.make_node("Add", [second.input[0], "mask"], ["masked"], "add_mask")
    second.input[0] = "masked"
    model.graph.node.insert(at, add)
    found = analyse(normalize(model).graph).sites
    sites = {s.name: s.reduced for s in found if not s.until}
    assert {v.reason for v in sites.values()} == {v.merge for v in sites.values()} == {""}
    joins = "in block 1, Add 'add_mask' joins 'mask', which has no row for a fused token"
    assert sites["attn:0"].fuse == sites["block:0"].fuse == joins
    assert sites["attn:1"].fuse == sites["output"].fuse == ""


@pytest.mark.parametrize(
    ("equation", "mixed"),
    [("bij,bjk->bik", [2]), ("...ij,...jk->...ik", [0, 1, 2]), ("bij,bjk", [0, 1, 2])],
)
def test_an_einsum_that_is_not_spelled_out_may_mix_everything(
    equation: str, mixed: list[int]
) -> None:
    tensors = [gs.Variable(name, np.float32, [2, 4, 4]) for name in "aby"]
    node = gs.Node("Einsum", "e", {"equation": equation}, tensors[:2], tensors[2:])
    assert mixed_axes(node, 0) == mixed


def test_an_attention_does_not_mix_its_heads() -> None:
    """Nor the batch, which an export may have joined with them: [1, B·h, N, D]."""
    tensors = [gs.Variable(name, np.float32, [1, 6, 4, 4]) for name in "qkvy"]
    node = gs.Node("Attention", "a", {}, tensors[:3], tensors[3:])
    assert mixed_axes(node, 0) == mixed_axes(node, 1) == [2, 3]


@pytest.mark.parametrize(
    ("axes", "noop", "found"),
    [(None, 0, [0, 1, 2]), ([], 0, [0, 1, 2]), ([], 1, []), ([-1, 1], 0, [1, 2])],
)
def test_axes_that_a_reduction_does_not_name(
    axes: list[int] | None, noop: int, found: list[int]
) -> None:
    inputs = [gs.Variable("x", np.float32, [2, 4, 4])]
    if axes is not None:
        inputs.append(gs.Constant("axes", np.asarray(axes, np.int64)))
    node = gs.Node(
        "ReduceSum", "r", {"noop_with_empty_axes": noop}, inputs, [gs.Variable("y", np.float32)]
    )
    assert reduced_axes(node) == found
