"""int8: onnxruntime's quantizer as a person would call it, on the nodes that may be int8."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions, quantization

from tcompile import pipeline
from tcompile.core import machine
from tcompile.core.domain import WRITTEN
from tcompile.core.errors import ModelError
from tcompile.core.machine import int8_saturates
from tcompile.core.save import save
from tcompile.passes.lower import int8, lower
from tcompile.passes.lower.int8 import check_size, quantizable, quantized
from tcompile.runtime.samples import feeds
from tcompile.runtime.scenes import scenes_for
from tcompile.runtime.signature import signature
from tcompile.targets import load_target
from tests.support.tiny_vit import save_tiny_vit
from tests.unit.passes.lower.blocks import parse

KINDS: tuple[int8.Kind, ...] = ("dynamic", "static")
Feeds = list[dict[str, Any]]


@pytest.fixture(scope="module", params=["evit", "tome:r=3"])
def lowered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[onnx.ModelProto, Feeds]:
    """A reduced model in plain ONNX, and images for it."""
    folder = tmp_path_factory.mktemp("int8")
    keep = {"keep": 0.5} if request.param == "evit" else {}
    made = pipeline.reduce(save_tiny_vit(folder / "vit.onnx"), method=request.param, **keep)
    path = folder / "plain.onnx"
    save(lower(made.graph, target=load_target("cpu"), precision="int8"), path, made.metadata)
    model = signature(path)
    return onnx.load(path), list(feeds(model, scenes_for(model, count=4, seed=1)))


def run(
    model: onnx.ModelProto, samples: Sequence[dict[str, Any]], *, as_written: bool = False
) -> list[Any]:
    """Every output for each sample.

    Args:
        as_written: node by node, nothing fused.
    """
    options = SessionOptions()
    if as_written:
        options.graph_optimization_level = GraphOptimizationLevel.ORT_DISABLE_ALL
    session = InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [session.run(None, feed) for feed in samples]


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, samples: Feeds) -> None:
        self.left = list(samples)

    def get_next(self) -> Any:
        return self.left.pop(0) if self.left else None


def by_hand(model: onnx.ModelProto, kind: str, samples: Feeds, folder: Path) -> onnx.ModelProto:
    """What a person would write, with the nodes that stay out named."""
    (source := folder / "source.onnx").write_bytes(model.SerializeToString())
    weights = {t.name for t in model.graph.initializer}
    ours = [n.name for n in model.graph.node if n.name.startswith("tcompile/")]
    two = [
        n.name
        for n in model.graph.node
        if n.op_type == "MatMul" and not weights.intersection(n.input)
    ]
    options: dict[str, Any] = {
        "op_types_to_quantize": ["MatMul", "Gemm"],
        "nodes_to_exclude": [*ours, *two],
        "per_channel": True,
        "reduce_range": int8_saturates(),
        "weight_type": quantization.QuantType.QInt8,
    }
    made = folder / "made.onnx"
    if kind == "dynamic":
        quantization.quantize_dynamic(source, made, **options)
    else:
        extra = {"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
        options |= {"activation_type": quantization.QuantType.QUInt8, "extra_options": extra}
        quantization.quantize_static(source, made, Reader(samples), **options)
    return onnx.load(made)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_the_quantizer_makes(
    lowered: tuple[onnx.ModelProto, Feeds], kind: int8.Kind, tmp_path: Path
) -> None:
    model, samples = lowered
    made, want = quantized(model, kind, samples), by_hand(model, kind, samples, tmp_path)
    onnx.checker.check_model(made, full_check=True)
    # The biases of static products have another shape, which keeps ONNX Runtime from fusing them.
    written = kind == "static"
    ours = run(made, samples, as_written=written)
    for mine, theirs in zip(ours, run(want, samples, as_written=written), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    names = quantizable(model)
    assert len(names) >= 3 * 4
    stored = [t for t in made.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len([t for t in stored if len(t.dims) == 2]) == len(names)


@pytest.mark.parametrize("kind", KINDS)
def test_token_ops_scores_and_attention_stay_as_they_are(
    lowered: tuple[onnx.ModelProto, Feeds], kind: int8.Kind
) -> None:
    model, samples = lowered
    made = quantized(model, kind, samples)
    ours = {n.name: n for n in model.graph.node if n.name.startswith(WRITTEN)}
    assert any("/Tc" in name for name in ours)
    left = {n.name: n for n in made.graph.node}
    assert all(left[name].op_type == node.op_type for name, node in ours.items())
    assert all(list(left[name].output) == list(node.output) for name, node in ours.items())
    bytes_ = {o for n in made.graph.node if "QuantizeLinear" in n.op_type for o in n.output}
    bytes_ -= {o for n in made.graph.node if n.op_type == "DequantizeLinear" for o in n.output}
    bytes_ |= {t.name for t in made.graph.initializer if t.data_type in (2, 3)}
    assert not any(bytes_.intersection(left[name].input) for name in ours)
    weights = {t.name for t in model.graph.initializer}
    pairs = [
        n.name
        for n in model.graph.node
        if n.op_type == "MatMul" and not weights.intersection(n.input)
    ]
    assert len(pairs) >= 6
    assert all(left[name].op_type == "MatMul" for name in pairs)


def test_static_products_run_in_int8(tmp_path: Path) -> None:
    """Also where ONNX Runtime knows all shapes, and would fuse a product and its bias in fp32."""
    x = np.random.default_rng(0).standard_normal((1, 5, 8), dtype=np.float32)
    numbers = ", ".join(str(i % 7 - 3) for i in range(32))
    model = parse(BIASED % numbers)

    def ran(model: onnx.ModelProto) -> list[str]:
        options = SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "ran.onnx")
        InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(tmp_path / "ran.onnx").graph.node]

    made = quantized(model, "static", [{"x": x}])
    assert "Gemm" in ran(by_hand(model, "static", [{"x": x}], tmp_path))
    assert ran(made).count("MatMulIntegerToFloat") == 2
    assert "Gemm" not in ran(made)
    names = [t.name for t in made.graph.initializer]
    assert ("bias" in names, "shared" in names, "shared/row" in names) == (False, True, True)
    want, have = run(model, [{"x": x}])[0], run(made, [{"x": x}])[0]
    for a, b in zip(want, have, strict=True):
        np.testing.assert_allclose(a, b, atol=0.05 * np.abs(a).max())


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_else_changes(
    lowered: tuple[onnx.ModelProto, Feeds],
    kind: int8.Kind,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not the model that is given, its metadata, inputs and outputs; nor the process."""
    model, samples = lowered
    before = model.SerializeToString()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = logging.getLogger()
    state = list(root.handlers), root.manager.disable
    made = quantized(model, kind, samples)
    assert model.SerializeToString() == before
    assert (list(root.handlers), root.manager.disable) == state
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert made.metadata_props == model.metadata_props
    assert made.graph.input == model.graph.input
    assert [o.name for o in made.graph.output] == [o.name for o in model.graph.output]
    assert {o.domain for o in made.opset_import} == {n.domain for n in made.graph.node}
    names = [n.name for n in made.graph.node]
    assert len(set(names)) == len(names)


BIASED = """<ir_version: 9, opset_import: ["" : 18]>
g (float[1,5,8] x) => (float[1,5,4] a, float[1,5,4] b, float[4] c)
<float[8,4] w = {%s}, float[4] bias = {1, 2, 3, 4}, float[4] shared = {4, 3, 2, 1}>
{
   [one] y = MatMul (x, w)
   [first] a = Add (y, bias)
   [two] z = MatMul (x, w)
   [second] b = Add (shared, z)
   [alone] c = Neg (shared)
}
"""


GEMMS = """<ir_version: 9, opset_import: ["" : 18]>
g (float[2,8] x, float[8,4] given) => (float[2,4] a, float[2,4] b, float[2,4] c, float[4,4] d)
<float[4,8] w = {%s}, float[4] bias = {1, 2, 3, 4}, float[8,4] v = {%s}>
{
   [plain] a = Gemm <transB = 1> (x, w, bias)
   [scaled] b = Gemm <alpha = 0.5, transB = 1> (x, w)
   [stored] c = MatMul (x, v)
   [two] c2 = MatMul (x, given)
   [scored] c3 = MatMul (x, v)
   [front] d = MatMul (w, given)
}
"""


def gemms() -> onnx.ModelProto:
    numbers = ", ".join(str(i % 7 - 3) for i in range(32))
    model = parse(GEMMS % (numbers, numbers))
    next(n for n in model.graph.node if n.name == "scored").name = "tcompile/score/MatMul"
    return model


def test_which_nodes_may_be_int8() -> None:
    model = gemms()
    assert quantizable(model) == ("plain", "stored")
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    feed = {"x": x, "given": np.ones((8, 4), np.float32)}
    for kind in KINDS:
        made = quantized(model, kind, [feed])
        ops = {n.name: n.op_type for n in made.graph.node}
        assert ops["scaled"] == "Gemm"
        assert ops["two"] == ops["tcompile/score/MatMul"] == ops["front"] == "MatMul"
        for have, want in zip(run(made, [feed])[0], run(model, [feed])[0], strict=True):
            np.testing.assert_allclose(have, want, atol=0.05 * np.abs(want).max())


def test_a_part_without_such_nodes_is_given_back() -> None:
    model = parse(
        '<ir_version: 9, opset_import: ["" : 18]>\n'
        "g (float[1,4] x) => (float[1,4] y) { y = Relu (x) }"
    )
    for kind in KINDS:
        made = quantized(model, kind)
        assert made == model
        assert made is not model


def test_two_gigabytes_are_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"below 2 GB, and its weights are 2\.5 GB"):
        check_size(5 << 29, "big.onnx")
    check_size((2 << 30) - 1)
    monkeypatch.setattr(int8, "LIMIT", 64)
    with pytest.raises(ModelError, match="as one message"):
        quantized(gemms(), "dynamic")


def test_what_the_quantizer_raises_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("it does\nnot like this")

    monkeypatch.setattr(quantization, "quantize_dynamic", fails)
    with pytest.raises(ModelError) as caught:
        quantized(gemms(), "dynamic")
    assert "does not take it (dynamic): it does not like this" in caught.value.one_line()
    assert "--precision fp32" in caught.value.one_line()


@pytest.mark.parametrize(
    ("text", "saturates"),
    [
        ("flags : sse avx2 avx512_vnni\n", False),
        ("x : y\nflags\t: avx2 avx_vnni\n", False),
        ("flags : sse avx2\n", True),
        ("Features : asimd\n", False),
        (None, False),
    ],
)
def test_processors_whose_sums_of_bytes_overflow(
    tmp_path: Path, text: str | None, saturates: bool
) -> None:
    path = tmp_path / "cpuinfo"
    if text is not None:
        path.write_text(text)
    assert machine.int8_saturates(path) is saturates
