"""Q/DQ for TensorRT: what is quantised and what is not, by which numbers, and what is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx.reference import ReferenceEvaluator

from tcompile import pipeline
from tcompile.artifact.directory import load_artifact
from tcompile.builder.on_images import looking_at, run_on
from tcompile.core.domain import WRITTEN
from tcompile.core.errors import ModelError
from tcompile.core.graph import batch_dim
from tcompile.core.progress import silent
from tcompile.core.save import saved
from tcompile.passes.lower import eight_bits, lower
from tcompile.passes.lower.eight_bits import EightBits, Kind, _is_linear, smooth
from tcompile.passes.lower.opset import raise_opset
from tcompile.passes.lower.types import complete
from tcompile.planning.request import Request
from tcompile.runtime.samples import Samples, run_graph
from tcompile.targets import load_target
from tcompile.targets.backends.ort import OrtRunner
from tcompile.targets.versions import TENSORRT
from tests.golden.text import parse
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import VitSpec, save_outlying_vit, save_tiny_vit

Array = npt.NDArray[Any]

BLOCK = """
<ir_version: 9, opset_import: ["" : %s]>
g (float[N,6,4] x) => (float[N,6,4] y)
<float[4] scale = {1.0, 2.0, 0.5, 1.0}, float[4] shift = {0.1, 0.0, -0.2, 0.3},
 float[4,8] w = {}, float[8] b = {}, float[8,4] u = {}>
{
   n = LayerNormalization (x, scale, shift)
   h = MatMul (n, w)
   biased = Add (h, b)
   r = Relu (biased)
   y = MatMul (r, u)
}
"""


def graph_of(text: str) -> gs.Graph:
    """A graph whose nodes are called as what they give."""
    graph = gs.import_onnx(parse(text))
    for node in graph.nodes:
        node.name = node.outputs[0].name
    complete(graph)
    return graph


def images(*shape: int, seed: int = 1, **more: Array) -> Samples:
    x = np.random.default_rng(seed).normal(size=(3, *shape)).astype(np.float32)
    return Samples({"x": x, **more}, "three", real=True)


def run_of(samples: Samples) -> Any:
    def run(graph: gs.Graph) -> Iterator[Mapping[str, Array]]:
        return run_on(samples, {}, graph)

    return run


def run_once(graph: gs.Graph, x: Array) -> dict[str, Array]:
    with saved(graph) as path:
        return OrtRunner(path).run({"x": x})


def pairs(graph: gs.Graph) -> dict[str, tuple[float, np.dtype[Any]]]:
    """Quantised activation → its scale, and the type of its zero point."""
    return {
        node.inputs[0].name: (float(node.inputs[1].values), node.inputs[2].values.dtype)
        for node in graph.nodes
        if node.op == "QuantizeLinear"
    }


@pytest.mark.parametrize(("kind", "top"), [("int8", 127), ("fp8", 448)])
def test_scales_are_the_ends_of_ranges_and_zero_is_zero(kind: Kind, top: float) -> None:
    graph, given = graph_of(BLOCK % 19), images(6, 4)
    plain = graph.copy()
    plain.outputs = [t for t in plain.tensors().values() if t.name in ("n", "r")]
    truth = run_graph(plain, given)
    eight = EightBits(kind, run_of(given), limit=1.0)
    if kind == "int8":  # What a norm gives is another tensor then.
        truth.pop("n")
    assert eight.quantize(graph, frozenset()) == 2
    found = pairs(graph)
    for name, values in truth.items():
        assert found[name][0] == pytest.approx(np.abs(values).max() / top, rel=1e-6)
    zeros = {z.values.dtype for z in _zeros(graph)}
    assert zeros == {np.dtype(np.int8 if kind == "int8" else ml_dtypes.float8_e4m3fn)}
    assert not any(np.asarray(z.values, np.float32).any() for z in _zeros(graph))


def _zeros(graph: gs.Graph) -> list[gs.Constant]:
    quantises = ("QuantizeLinear", "DequantizeLinear")
    return [node.inputs[2] for node in graph.nodes if node.op in quantises]


@pytest.mark.parametrize("turned", [False, True])
def test_weights_have_a_scale_an_output_channel(turned: bool) -> None:
    op = "y = Gemm <transB = 1> (x, w)" if turned else "y = MatMul (x, w)"
    dims = "3,4" if turned else "4,3"
    graph = graph_of(
        f"""<ir_version: 9, opset_import: ["" : 17]>
        g (float[6,4] x) => (float[6,3] y) <float[{dims}] w = {{}}> {{ {op} }}"""
    )
    weight = np.array(graph.tensors()["w"].values)
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    eight = EightBits("int8", lambda probed: [run_once(probed, x)], limit=1.0)
    assert eight.quantize(graph, frozenset()) == 1
    stored = next(n for n in graph.nodes if n.op == "DequantizeLinear" and "axis" in n.attrs)
    small, scale, _ = (t.values for t in stored.inputs)
    axis = 0 if turned else 1
    assert stored.attrs["axis"] == axis
    most = np.abs(weight).max(axis=1 - axis)
    np.testing.assert_allclose(scale, most / 127, rtol=1e-6)
    shape = (-1, 1) if turned else (1, -1)
    want = np.rint(weight / (most / 127).reshape(shape))
    assert np.abs(small - want).max() <= 1  # at a tie one or the other
    assert (small != want).mean() < 0.1
    assert np.abs(small).max() == 127


@pytest.mark.parametrize("opset", [17, 18])
def test_the_result_is_near_in_int8_and_in_fp8(opset: int) -> None:
    """Against ONNX's reference, in the opsets on both sides of where axes became inputs."""
    given = images(6, 4)
    truth = run_graph(graph_of(BLOCK % opset), given)["y"]
    for kind in ("int8", "fp8"):
        graph = graph_of(BLOCK % opset)
        if kind == "fp8":
            assert not raise_opset(graph, 19)
        EightBits(kind, run_of(given), limit=1.0).quantize(graph, frozenset())
        ours = run_graph(graph, given)["y"]
        error = np.linalg.norm(ours - truth) / np.linalg.norm(truth)
        assert 1e-4 < error < (0.02 if kind == "int8" else 0.06)
        assert not raise_opset(graph, 19)  # the oldest of which the reference has Q/DQ
        (other,) = ReferenceEvaluator(to_onnx(graph)).run(None, {"x": given.arrays["x"]})
        np.testing.assert_allclose(ours, other, atol=0.02 * np.abs(truth).max())


SPELLED = """
<ir_version: 9, opset_import: ["" : 17]>
g (float[N,6,4] x) => (float[N,6,3] a, float[N,6,3] c)
<float[4] scale = {1.0, 2.0, 0.5, 1.0}, float[4] shift = {0.1, 0.0, -0.2, 0.3},
 float[4,3] w = {}, float[4,3] u = {}>
{
   scaled = Mul (scale, x)
   n = Add (scaled, shift)
   a = MatMul (n, w)
   c = MatMul (n, u)
}
"""


@pytest.mark.parametrize("text", [BLOCK % 18, SPELLED])
def test_smoothing_changes_no_result(text: str) -> None:
    graph, given = graph_of(text), images(6, 4)
    given.arrays["x"][..., 2] *= 300  # type: ignore[index]
    truth = run_graph(graph, given)
    products = [n for n in graph.nodes if n.op == "MatMul" and n.inputs[0].name == "n"]
    old = np.array(products[0].inputs[1].values)
    assert smooth(graph, products, run_of(given)) == 1
    assert not np.allclose(products[0].inputs[1].values, old)
    for name, values in run_graph(graph, given).items():
        np.testing.assert_allclose(values, truth[name], rtol=1e-4, atol=1e-4 * np.abs(values).max())


def test_a_norm_that_something_else_reads_is_not_smoothed() -> None:
    graph = graph_of(
        (BLOCK % 18).replace("y = MatMul (r, u)", "z = MatMul (r, u)\n y = Add (z, n)")
    )
    products = [n for n in graph.nodes if n.op == "MatMul"]
    assert smooth(graph, products, run_of(images(6, 4))) == 0


def test_outliers_of_channels_cost_nothing_behind_a_norm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one channel a million times as large as the others: without smoothing nothing is left."""
    path = save_outlying_vit(tmp_path / "vit.onnx", VitSpec(width=64, heads=2, depth=2))
    model, target = pipeline.read(path), load_target("jetson-orin")
    request = Request(keep=0.5, method="topk")
    reduced = pipeline.reduce(path, method="topk", keep=0.5)
    for smoothed in (True, False):
        eight = looking_at(model, request, target, "int8", {}, silent).eight_bits
        assert eight is not None
        with monkeypatch.context() as patch:
            if not smoothed:
                patch.setattr(eight_bits, "smooth", lambda *_: 0)
            lower(reduced.graph, target=target, precision="int8", eight_bits=eight)
        assert eight.smoothed == (4 if smoothed else 0)
        assert eight.products == (8 if smoothed else 4)


def test_a_product_that_8_bits_are_too_few_for_stays() -> None:
    """One token is a thousand times as large: what distinguishes the others is rounded away."""
    graph, given = graph_of(BLOCK % 18), images(6, 4)
    x = np.zeros((3, 6, 8), np.float32) + np.random.default_rng(3).normal(size=(3, 6, 8)) / 100
    x[:, 0] = 1000
    del graph.nodes[:4]
    graph.inputs = [gs.Variable("x", np.float32, ["N", 6, 8])]
    graph.nodes[0].inputs[0] = graph.inputs[0]
    given = Samples({"x": x.astype(np.float32)}, "three", real=True)
    eight = EightBits("int8", run_of(given))
    assert eight.quantize(graph, frozenset()) == 0
    # All rows but the first, and the last, which is held against the first.
    assert eight.left == {"y": pytest.approx(4 / 6, abs=0.1)}
    assert not pairs(graph)


def test_nodes_that_are_called_as_what_they_give() -> None:
    """A product reads another one's result: the Q/DQ of that and of its weight are two."""
    graph = graph_of(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[N,6,4] x) => (float[N,6,4] y) <float[4,4] a = {}, float[4,4] b = {}>
        { h = MatMul (x, a)  y = MatMul (h, b) }"""
    )
    given = images(6, 4)
    truth = run_graph(graph, given)["y"]
    assert EightBits("int8", run_of(given), limit=1.0).quantize(graph, frozenset()) == 2
    made = [t.name for node in graph.nodes for t in node.outputs]
    constants = {id(t): t.name for n in graph.nodes for t in n.inputs if isinstance(t, gs.Constant)}
    assert len(set(made)) == len(made)
    assert len({n.name for n in graph.nodes}) == len(graph.nodes)
    assert len(set(constants.values())) == len(constants)
    ours = run_graph(graph, given)["y"]
    assert np.linalg.norm(ours - truth) < 0.03 * np.linalg.norm(truth)


@pytest.mark.parametrize(
    ("x", "y", "quantised"),
    [
        ("N,6,4", "N,6,4", True),
        ("N,1,4", "N,1,4", False),
        ("N,4", "N,4", False),
        ("3,6,4", "3,6,4", True),
        ("3,1,4", "3,1,4", False),
        ("3,4", "3,4", False),
        ("18,4", "18,4", True),
    ],
)
def test_rows_are_those_of_one_image(x: str, y: str, quantised: bool) -> None:
    fixed = x[0] != "N"
    graph = graph_of(
        f"""<ir_version: 9, opset_import: ["" : 18]>
        g (float[{3 if fixed else "N"},2,2,2] image, float[{x}] x) => (float[{y}] y)
        <float[4,4] a = {{}}> {{ y = MatMul (x, a) }}"""
    )
    batch = batch_dim(graph)
    assert _is_linear(graph.nodes[0], frozenset(), batch) is quantised


def test_flattened_tokens_of_a_free_batch_are_rows(tmp_path: Path) -> None:
    """[batch · tokens, channels], as Gemm has them."""
    vit = save_tiny_vit(tmp_path / "vit.onnx", VitSpec(depth=1), batch=None)
    model = onnx.load(vit)
    weights = {t.name: t for t in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "MatMul" or "mlp.fc1" not in node.input[1]:
            nodes.append(node)
            continue
        inner, outer = weights[node.input[1]].dims
        for name, dims in (("flat", [-1, inner]), ("whole", [-1, 17, outer])):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(dims), name))
        zero = np.zeros(outer, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(zero, "none"))
        make = onnx.helper.make_node
        nodes += [
            make("Reshape", [node.input[0], "flat"], ["rows"], "rows"),
            make("Gemm", ["rows", node.input[1], "none"], ["wide"], "wide"),
            make("Reshape", ["wide", "whole"], list(node.output), node.name),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, vit)
    built = pipeline.build(
        vit, target="jetson-orin", precision="int8", method="topk", keep=0.5, output=tmp_path / "o"
    )
    artifact = load_artifact(built)
    assert artifact.manifest.quantization is not None
    assert artifact.manifest.quantization.products == 4
    assert any("not on a Jetson" in note for note in artifact.manifest.notes)


def test_an_attention_whose_probabilities_are_read_elsewhere_stays() -> None:
    text = ATTENTION.format(rows=3, size=16, keys=16)
    graph = graph_of(text)
    probabilities = graph.tensors()["p"]
    rng = np.random.default_rng(0)
    k, v = (rng.normal(size=(3, 2, 16, 16)).astype(np.float32) for _ in range(2))
    run = run_of(images(2, 3, 16, k=k, v=v))
    for read in (False, True):
        if read:
            graph.outputs.append(probabilities)
        eight = EightBits("int8", run, TENSORRT.attention["int8"], limit=1.0)
        assert eight.quantize(graph.copy(), frozenset()) == (0 if read else 1)


def test_left_alone(tmp_path: Path) -> None:
    """Heads of one row, what tcompile wrote, what stays in fp32, and a Gemm with factors."""
    graph = graph_of(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[N,6,4] x, float[N,1,4] head) => (float[N,6,4] y, float[N,1,4] z)
        <float[4,4] a = {}, float[4,4] b = {}, float[4,4] c = {}>
        { one = MatMul (x, a)  two = MatMul (one, b)  y = MatMul (two, c)  z = MatMul (head, a) }"""
    )
    graph.nodes[1].name = f"{WRITTEN}{graph.nodes[1].name}"
    given = images(6, 4, head=np.ones((3, 1, 4), np.float32))
    eight = EightBits("int8", run_of(given), limit=1.0)
    assert eight.quantize(graph, frozenset({"y"})) == 1
    assert list(pairs(graph)) == ["x"]


ATTENTION = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[N,2,{rows},{size}] x, float[N,2,{size},{keys}] k, float[N,2,{keys},{size}] v)
  => (float[N,2,{rows},{size}] y)
<float by = {{0.125}}, float[1,1,1,{keys}] mask = {{}}>
{{
   d = MatMul (x, k)
   s = Mul (d, by)
   m = Add (s, mask)
   p = Softmax <axis = -1> (m)
   y = MatMul (p, v)
}}
"""


@pytest.mark.parametrize(
    ("kind", "size", "keys", "rows", "quantised"),
    [
        ("int8", 64, 512, 3, True),
        ("int8", 64, 513, 3, False),
        ("int8", 80, 64, 3, False),
        ("int8", 32, 64, 1, False),
        ("fp8", 80, 600, 3, True),
        ("fp8", 12, 64, 3, False),
        ("fp8", 64, 31, 3, False),
    ],
)
def test_attention_that_has_a_kernel(
    kind: Kind, size: int, keys: int, rows: int, quantised: bool
) -> None:
    graph = graph_of(ATTENTION.format(rows=rows, size=size, keys=keys))
    graph.opset = 19
    rng = np.random.default_rng(0)
    given = images(
        2,
        rows,
        size,
        k=rng.normal(size=(3, 2, size, keys)).astype(np.float32),
        v=rng.normal(size=(3, 2, keys, size)).astype(np.float32),
    )
    for rule, wanted in ((TENSORRT.attention[kind], quantised), (None, False)):
        made = graph.copy()
        eight = EightBits(kind, run_of(given), rule, limit=1.0)
        assert eight.quantize(made, frozenset()) == eight.attentions == int(wanted)
        assert set(pairs(made)) == ({"x", "k", "p", "v"} if wanted else set())


def test_an_attention_is_in_8_bits_as_a_whole_or_not_at_all() -> None:
    """Q and K are whole numbers, which rounding takes nothing from; V is not."""
    graph = graph_of(ATTENTION.format(rows=3, size=16, keys=16))
    rng = np.random.default_rng(0)
    v = rng.normal(size=(3, 2, 16, 16)).astype(np.float32)
    whole = np.sign(rng.normal(size=(3, 2, 3 + 16, 16))).astype(np.float32)
    k = np.ascontiguousarray(whole[:, :, 3:].swapaxes(2, 3))
    given = Samples({"x": whole[:, :, :3], "k": k, "v": v}, "three", real=True)
    eight = EightBits("int8", run_of(given), TENSORRT.attention["int8"], limit=1e-4)
    assert eight.quantize(graph, frozenset()) == 0
    assert list(eight.left) == ["y"]
    assert not pairs(graph)


def test_a_graph_that_cannot_be_said_in_a_newer_opset_is_refused() -> None:
    graph = graph_of(
        """<ir_version: 9, opset_import: ["" : 18]>
        g (float[1,4,8,8] x) => (float[1,4,8,8] y) { y = Relu (x) }"""
    )
    graph.nodes[0].op = "GroupNormalization"
    assert raise_opset(graph, 19) == ()
    graph.opset = 18
    assert raise_opset(graph, 21) == ("GroupNormalization",)
    assert graph.opset == 18


def test_fp8_says_which_operator_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_tiny_vit(tmp_path / "vit.onnx", VitSpec(depth=1))
    reduced = pipeline.reduce(path, method="topk", keep=0.5)
    target = load_target("rtx-4090")
    request = Request(keep=0.5, method="topk")
    found = looking_at(pipeline.read(path), request, target, "fp8", {}, silent)
    stubborn: Sequence[str] = ("Resize",)
    monkeypatch.setattr(lower_module(), "raise_opset", lambda *_: stubborn)
    with pytest.raises(ModelError, match="fp8 needs opset 19, in which Resize cannot be said"):
        lower(reduced.graph, target=target, precision="fp8", eight_bits=found.eight_bits)


def lower_module() -> Any:
    import tcompile.passes.lower as module

    return module
