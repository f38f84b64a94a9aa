"""Products of fp32 as sums: the same numbers, and engines for compute capability 7.5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile import pipeline
from tcompile.core.errors import TcompileError, UsageError
from tcompile.core.save import save as save_graph
from tcompile.passes.lower import lower
from tcompile.passes.lower.spell import spell_products
from tcompile.targets import load_target
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import VitSpec, save_tiny_vit
from tests.unit.passes.lower.blocks import difference, parse, run, save


@pytest.mark.parametrize("opset", [11, 13, 20])
@pytest.mark.parametrize(
    ("a", "b", "y"),
    [
        ((5, 7), (7, 4), (5, 4)),
        ((2, 5, 7), (2, 7, 4), (2, 5, 4)),
        ((2, 3, 1, 7), (2, 3, 7, 4), (2, 3, 1, 4)),
        ((2, 5, 7), (7, 4), (2, 5, 4)),
        ((5, 7), (3, 7, 4), (3, 5, 4)),
        ((1, 3, 5, 7), (2, 1, 7, 4), (2, 3, 5, 4)),
    ],
)
def test_the_same_numbers(
    tmp_path: Path, a: tuple[int, ...], b: tuple[int, ...], y: tuple[int, ...], opset: int
) -> None:
    pytest.importorskip("onnxruntime")

    def dims(shape: tuple[int, ...]) -> str:
        return ",".join(map(str, shape))

    model = parse(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[{dims(a)}] a, float[{dims(b)}] b)'
        f" => (float[{dims(y)}] y) {{ y = MatMul (a, b) }}"
    )
    graph = gs.import_onnx(model)
    replaced = spell_products(graph)
    assert len(replaced) == 1
    assert not any(node.op == "MatMul" for node in graph.nodes)
    want = run(save(model, tmp_path, "a.onnx"))
    assert difference(want, run(save(to_onnx(graph), tmp_path, "b.onnx"))) < 1e-6


def test_half_precision_stays(tmp_path: Path) -> None:
    model = parse(
        '<ir_version: 8, opset_import: ["": 17]> g (float16[5,7] a, float16[7,4] b)'
        " => (float16[5,4] y) { y = MatMul (a, b) }"
    )
    graph = gs.import_onnx(model)
    assert not spell_products(graph)
    assert [node.op for node in graph.nodes] == ["MatMul"]


METHODS = {"topk": "0.6", "evit": "0.6", "tome": "0.6", "pitome": "0.6", "visionzip": "0.6"}


@pytest.mark.heavy
@pytest.mark.parametrize("method", METHODS)
def test_reduced_models_build_for_turing(tmp_path: Path, method: str) -> None:
    """A T4 takes none of them with fp32 products; ONNX Runtime computes the same from both."""
    pytest.importorskip("tensorrt_rtx")
    from tcompile.targets.backends.rtx import build

    spec = VitSpec(image=64, width=64, depth=2)
    path = save_tiny_vit(tmp_path / "vit.onnx", spec)
    reduced = pipeline.reduce(path, keep=METHODS[method], method=method)
    made = {}
    for name in ("t4", "rtx-4090"):
        graph = lower(
            reduced.graph, target=load_target(name), precision="fp16", fp32_nodes=reduced.fp32_nodes
        )
        made[name] = tmp_path / f"{name}.onnx"
        save_graph(graph, made[name])
        onnx.checker.check_model(onnx.load(str(made[name])), full_check=True)
    assert len(build(made["t4"], "7.5")) > 10_000
    with pytest.raises(TcompileError, match="FP32 GEMM"):
        build(made["rtx-4090"], "7.5")
    want, got = run(made["rtx-4090"]), run(made["t4"])
    for key, value in want.items():
        np.testing.assert_allclose(got[key], value, rtol=0, atol=4e-3)


def test_fp32_is_refused_at_once() -> None:
    graph = gs.Graph()
    with pytest.raises(UsageError, match="target t4 has no precision 'fp32'"):
        lower(graph, target=load_target("t4"), precision="fp32")
