from __future__ import annotations

import onnx
import pytest

from tcompile.models.onnx_vit import VitSpec, build_vit
from tcompile.pipeline import read
from tcompile.profiling.roofline import modelled
from tcompile.profiling.roofline.cpu import from_figures
from tests.support.onnx_models import to_onnx

#: 100 GFLOP/s a core, 12 GB/s beyond the caches, 1 us a node.
CPU = from_figures(2, {"product": 2.01e-3, "cached": 1.2e-3, "beyond": 16e-3, "tiny": 200e-6})


def test_nodes_are_those_of_onnx_runtimes_optimised_model(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    path, optimised = tmp_path / "model.onnx", tmp_path / "optimised.onnx"
    onnx.save(build_vit(VitSpec(image=64, patch=16, width=64, heads=2, depth=3)), path)
    graph = read(path).graph
    onnx.save(to_onnx(graph), path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(optimised)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    real = [n.op_type for n in onnx.load(optimised).graph.node]
    found = modelled(graph, CPU, precision="fp32").kernels
    nodes = sum(k.launches for k in found)
    assert nodes == pytest.approx(len(real), rel=0.15)
    products = ("Gemm", "MatMul", "FusedMatMul", "Conv")
    assert sum(k.kind == "gemm" for k in found) == sum(op in products for op in real)
    for op in ("Erf", "Softmax"):
        assert real.count(op) == sum(k.name.startswith(op.lower()) for k in found)


def test_gelu_with_a_division_is_one_node(vit):
    graph = vit().copy()
    before = len(modelled(graph, CPU, precision="fp32").kernels)
    erf = next(n for n in graph.nodes if n.op == "Erf")
    erf.inputs[0].inputs[0].op = "Div"
    assert len(modelled(graph, CPU, precision="fp32").kernels) == before - 4


def test_a_bias_and_a_scale_belong_to_their_product(vit):
    found = modelled(vit(), CPU, precision="fp32").kernels
    adds = [k for k in found if k.name.startswith("add")]
    # Position embedding, two residual adds, and the 1 + erf of GELU: no bias among them.
    assert len(adds) == 4


def test_figures_become_rates():
    assert CPU.matrix == pytest.approx(100, rel=0.01)
    assert CPU.launch == pytest.approx(1e-6)
    assert CPU.cache == pytest.approx(12 * 2**18 / 99e-6)
    assert CPU.memory == pytest.approx(12 * 2**24 / 16e-3, rel=0.01)
    assert CPU.cpu
    assert CPU.cores == 2


def test_a_large_product_runs_at_the_measured_rate(vit):
    found = modelled(vit(197, depth=1), CPU, precision="fp32").kernels
    ms = max(k.ms for k in found if k.kind == "gemm")
    assert ms == pytest.approx(2 * 197 * 768 * 3072 / 200e9 * 1e3, rel=0.03)


def test_this_machine_is_measured_once():
    pytest.importorskip("onnxruntime")
    from tcompile.profiling.roofline import cpu_device

    device = cpu_device(1)
    assert cpu_device(1) is device
    assert 1 < device.matrix < 2000  # GFLOP/s of a core
    assert 1e9 < device.memory <= device.cache < 1e13
    assert 1e-8 < device.launch < 1e-4
