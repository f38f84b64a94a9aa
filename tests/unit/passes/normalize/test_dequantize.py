"""Quantised files, as ONNX Runtime's quantiser writes them, read to floats."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from tcompile import pipeline
from tcompile.builder.checks import check_normal_form
from tcompile.core.errors import ModelError
from tcompile.core.load import load
from tcompile.core.save import save
from tcompile.passes.normalize import Normalized, normalize
from tests.oracles.compare import infer
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import VitSpec, save_tiny_vit

#: How `quantize_dynamic` is asked to spell it.
SPELLINGS: dict[str, dict[str, Any]] = {
    "unsigned": {"weight_type": QuantType.QUInt8},
    "signed": {"weight_type": QuantType.QInt8},
    "by column": {"weight_type": QuantType.QInt8, "per_channel": True},
    "attention too": {"weight_type": QuantType.QInt8, "extra_options": {"MatMulConstBOnly": False}},
}
#: And `quantize_static`.
STATIC: dict[str, dict[str, Any]] = {
    "pairs": {"quant_format": QuantFormat.QDQ},
    "operators": {"quant_format": QuantFormat.QOperator},
    "operators by column": {
        "quant_format": QuantFormat.QOperator,
        "per_channel": True,
        "activation_type": QuantType.QUInt8,
    },
}


class Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.left: Iterator[dict[str, Any]] = iter([images(1, 1), images(1, 2)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.left, None)


def images(count: int = 2, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"image": rng.normal(size=(count, 3, 32, 32)).astype(np.float32)}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logging.disable(logging.WARNING)
    folder = tmp_path_factory.mktemp("vit")
    return save_tiny_vit(folder / "vit.onnx", VitSpec(depth=2), batch=None)


def logits(model: onnx.ModelProto) -> Any:
    return infer(model, images())["logits"]


def read(path: Path) -> tuple[Normalized, Any]:
    found = normalize(load(path))
    return found, logits(to_onnx(found.graph))


def with_weights_of(source: Path, quantised: Path) -> onnx.ModelProto:
    """The model in floats, its weights rounded to what the quantised file stores."""
    model, stored = onnx.load(source), {}
    for tensor in onnx.load(quantised).graph.initializer:
        stored[tensor.name] = numpy_helper.to_array(tensor)
    for tensor in model.graph.initializer:
        name = tensor.name
        if f"{name}_quantized" in stored:
            whole = stored[f"{name}_quantized"].astype(np.float32)
            zero, scale = stored[f"{name}_zero_point"], stored[f"{name}_scale"]
            value = ((whole - zero.astype(np.float32)) * scale).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, name))
    return model


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_what_is_quantised_at_run_time_is_the_model_with_rounded_weights(
    spelling: str, vit: Path, tmp_path: Path
) -> None:
    path = tmp_path / "quantised.onnx"
    quantize_dynamic(vit, path, **SPELLINGS[spelling])
    found, given = read(path)
    assert found.quantized == {"attention too": 14}.get(spelling, 10)
    assert "quantises the operands of" in found.notes[0]
    np.testing.assert_allclose(given, logits(with_weights_of(vit, path)), atol=1e-5)
    rounded, exact = logits(onnx.load(path)), logits(onnx.load(vit))
    assert np.abs(given - rounded).max() < 0.05 * np.abs(exact).max()
    # The scales are in the weights: what is left multiplies for GELU and the attention.
    assert sum(node.op == "Mul" for node in found.graph.nodes) == 8
    assert [str(s.name) for s in pipeline.read(path).analysis.sites if s.legal][:3] == [
        "attn:0",
        "block:0",
        "attn:1",
    ]
    save(found.graph, tmp_path / "normal.onnx")
    check_normal_form(path, tmp_path / "normal.onnx", quantized=True)


@pytest.mark.parametrize("spelling", STATIC)
def test_operators_of_quantised_tensors_compute_what_they_did(
    spelling: str, vit: Path, tmp_path: Path
) -> None:
    path = tmp_path / "quantised.onnx"
    quantize_static(vit, path, Images(), **STATIC[spelling])
    found, given = read(path)
    assert found.quantized == 0
    np.testing.assert_allclose(given, logits(onnx.load(path)), atol=1e-5)
    assert not any(node.op.startswith("QLinear") for node in found.graph.nodes)
    assert pipeline.reduce(path, keep=0.5, method="topk").schedule.reductions


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_of_four_bits_are_unpacked(symmetric: bool, vit: Path, tmp_path: Path) -> None:
    quantizer = MatMulNBitsQuantizer(onnx.load(vit), block_size=16, is_symmetric=symmetric)
    quantizer.process()
    path = tmp_path / "packed.onnx"
    quantizer.model.save_model_to_file(str(path))
    assert sum(n.op_type == "MatMulNBits" for n in onnx.load(path).graph.node) == 9
    found, given = read(path)
    np.testing.assert_allclose(given, logits(onnx.load(path)), atol=1e-4)
    assert found.quantized == 0
    assert pipeline.reduce(path, keep=0.5, method="topk").schedule.reductions


def parse(body: str, result: str = "float") -> onnx.ModelProto:
    text = (
        '<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]> g (float[2,3] x) '
        f"=> ({result}[2,4] y) <int8[3,4] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}, "
        f"float s = {{0.5}}, uint8 z = {{3}}> {{ q, a, b = DynamicQuantizeLinear (x) {body} }}"
    )
    return onnx.parser.parse_model(text)


@pytest.mark.parametrize(
    ("body", "result", "says"),
    [
        ("y = MatMulInteger (q, w, b)", "int32", "output 'y'"),
        ("h = MatMulInteger (q, w, b) r = Abs (h) y = Cast <to = 1> (r)", "float", "Abs_2' reads"),
        ("h = BitShift <direction = \"LEFT\"> (q, q) r = Cast <to = 1> (h) "
         "m = Cast <to = 1> (w) y = MatMul (r, m)", "float", "BitShift"),
    ],
)  # fmt: skip
def test_what_reads_whole_numbers_is_named(body: str, result: str, says: str) -> None:
    model = parse(body, result)
    with pytest.raises(ModelError, match=says):
        normalize(model)


PRODUCT = "h = MatMulInteger (q, w, b) r = Cast <to = 1> (h) "


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (PRODUCT + "e = Add (r, s) y = Mul (e, a)", "Add 'Add_3' reads the whole"),
        (PRODUCT + "y = Mul (r, s)", "output 'y' is what MatMulInteger 'MatMulInteger_1' gives"),
        (PRODUCT + "e = Relu (r) k = Mul (a, a) y = Mul (e, k)", "Relu 'Relu_3' reads"),
        (PRODUCT + "k = Mul (a, a) y = Mul (r, k)", "Mul 'Mul_4' reads"),
        (PRODUCT + "y = Mul (r, r)", "Mul 'Mul_3' reads"),
        ("h = MatMulInteger (q, w) r = Cast <to = 1> (h) y = Mul (r, a)", "another zero point"),
        ("f = DequantizeLinear (q, s, b) m = Cast <to = 1> (w) y = MatMul (f, m)", "another scale"),
    ],
)
def test_a_product_that_is_not_multiplied_by_its_scale_is_named(body: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        normalize(parse(body))


@pytest.mark.parametrize(
    "body",
    [
        PRODUCT + "e = Mul (a, r) y = Mul (e, s)",
        PRODUCT + "e = Mul (s, r) k = Mul (a, s) y = Mul (k, e)",
        PRODUCT + "k = Mul (s, a) e = Mul (r, k) y = Add (e, k)",  # the scale is read elsewhere too
    ],
)
def test_scales_are_found_however_they_are_multiplied(body: str) -> None:
    x = {"x": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}
    (want,) = infer(parse(body), x).values()
    (have,) = infer(to_onnx(normalize(parse(body)).graph), x).values()
    np.testing.assert_allclose(have, want, atol=0.02 * np.abs(want).max())


def test_floats_that_were_quantised_for_an_output_are_an_output() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[2,3] x) => (float[2,3] y) '
        "{ q, a, b = DynamicQuantizeLinear (x) y = DequantizeLinear (q, a, b) }"
    )
    x = {"x": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}
    np.testing.assert_array_equal(infer(to_onnx(normalize(model).graph), x)["y"], x["x"])


@pytest.mark.parametrize("dims", ["1,2,1,1", "2,1,1", "1,2", "2", "1", "1,1,1,1,1"])
def test_a_scale_of_a_convolution_runs_along_the_axis_that_it_did(dims: str) -> None:
    numbers = "0.1, 0.5" if "2" in dims else "0.1"
    rank = ",".join(["1"] * (dims == "1,1,1,1,1") + ["1", "2", "2", "2"])
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 18]> g (uint8[1,1,3,3] x) => (float[{rank}] y) '
        f"<uint8[2,1,2,2] w = {{1, 2, 3, 4, 5, 6, 7, 8}}, float[{dims}] s = {{{numbers}}}> "
        "{ h = ConvInteger (x, w) r = Cast <to = 1> (h) y = Mul (r, s) }"
    )
    x = {"x": np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3)}
    want = infer(model, x)["y"]
    found = normalize(model).graph
    np.testing.assert_allclose(infer(to_onnx(found), x)["y"], want, rtol=1e-5)
    folded = dims in ("1,2,1,1", "2,1,1", "1")
    assert any(node.op == "Mul" for node in found.nodes) != folded


@pytest.mark.parametrize(("axis", "opset"), [(1, 12), (-2, 12), (2, 12), (1, 13), (-1, 11)])
@pytest.mark.parametrize("batch", ["2", "N"])
def test_a_quantised_softmax_is_over_the_axes_that_it_was(
    axis: int, opset: int, batch: str
) -> None:
    text = (
        f'<ir_version: 9, opset_import: ["" : 18, "com.microsoft" : 1]> g (float[{batch},3,4] x) '
        f"=> (float[{batch},3,4] y) <float s = {{0.02}}, uint8 z = {{128}}, "
        "float t = {0.00390625}, uint8 o = {0}> { q = QuantizeLinear (x, s, z) "
        f"r = com.microsoft.QLinearSoftmax <axis = {axis}, opset = {opset}> (q, s, z, t, o) "
        "y = DequantizeLinear (r, t, o) }"
    )
    model = onnx.parser.parse_model(text)
    x = {"x": np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)}
    want = infer(model, x)["y"]
    have = infer(to_onnx(normalize(model).graph), x)["y"]
    np.testing.assert_allclose(have, want, atol=0.004)


def test_an_operator_that_is_not_read_is_named() -> None:
    model = parse(
        "p = QuantizeLinear (x, s, z) y = com.microsoft.QLinearWhere (p, p, s, z, p, s, z, s, z)",
        "uint8",
    )
    with pytest.raises(ModelError, match="QLinearWhere 'QLinearWhere_2' is an operator"):
        normalize(model)
