from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tcompile.profiling.roofline import device_of, modelled
from tcompile.profiling.roofline.cpu import from_figures
from tcompile.profiling.roofline.steps import steps_of
from tcompile.profiling.roofline.work import read_bytes
from tcompile.targets import load_target

HALF = device_of(load_target("t4"), "fp16")
CPU = from_figures(2, {"product": 2e-3, "cached": 1e-3, "beyond": 16e-3, "tiny": 200e-6})


def one(op: str, shapes: list[tuple[int, ...]], out: tuple[int, ...], **attributes) -> gs.Graph:
    reads = [gs.Variable(f"x{i}", np.float32, s) for i, s in enumerate(shapes)]
    y = gs.Variable("y", np.float32, out)
    return gs.Graph([gs.Node(op, "node", attributes, reads, [y])], reads, [y])


def read(graph: gs.Graph) -> int:
    return read_bytes(steps_of(graph, 1).steps, (), {}, HALF)


def test_a_slice_reads_what_it_takes():
    assert read(one("Slice", [(1, 197, 768)], (1, 1, 768))) == 768 * 2


def test_an_addition_reads_both_once():
    assert read(one("Add", [(4, 8), (4, 8)], (4, 8))) == 2 * 32 * 2
    twice = one("Add", [(4, 8)], (4, 8))
    twice.nodes[0].inputs.append(twice.inputs[0])
    assert read(twice) == 32 * 2


def test_what_the_kernel_made_itself_is_not_read():
    steps = steps_of(one("Relu", [(4, 8)], (4, 8)), 1).steps
    assert read_bytes(steps, {"x0"}, {}, HALF) == 0
    assert read_bytes(steps, {"root"}, {"x0": "root"}, HALF) == 0


def test_a_cpu_moves_data_with_one_thread():
    graph = one("Transpose", [(512, 1024)], (1024, 512), perm=[1, 0])
    bytes_moved = 2 * 4 * 512 * 1024
    expected = CPU.launch + bytes_moved / (CPU.cache / 2)
    assert modelled(graph, CPU, precision="fp32").ms == pytest.approx(expected * 1e3)


def test_pointwise_work_on_a_cpu_uses_all_threads():
    graph = one("Add", [(512, 1024), (512, 1024)], (512, 1024))
    slow = replace(CPU, vector=1e9)
    expected = CPU.launch + 3 * 4 * 512 * 1024 / CPU.cache
    assert modelled(graph, slow, precision="fp32").ms == pytest.approx(expected * 1e3)


def test_a_scalar_factor_joins_a_product_of_activations_on_a_cpu():
    graph = one("MatMul", [(2, 8, 8), (2, 8, 8)], (2, 8, 8))
    factor, z = gs.Constant("c", np.array(0.5, np.float32)), gs.Variable("z", np.float32, (2, 8, 8))
    graph.nodes.append(gs.Node("Mul", "scale", inputs=[graph.outputs[0], factor], outputs=[z]))
    graph.outputs = [z]
    assert len(modelled(graph, CPU, precision="fp32").kernels) == 1


def test_a_transpose_that_moves_only_axes_of_one_is_free_on_a_gpu():
    assert not modelled(
        one("Transpose", [(1, 8, 4)], (8, 1, 4), perm=[1, 0, 2]), HALF, precision="fp16"
    ).kernels
    assert modelled(
        one("Transpose", [(2, 8, 4)], (8, 2, 4), perm=[1, 0, 2]), HALF, precision="fp16"
    ).kernels


@pytest.mark.parametrize(("k", "kind"), [(1, "reduce"), (8, "topk")])
def test_the_largest_one_is_a_reduction_and_no_sort(k, kind):
    graph = one("TopK", [(4, 64)], (4, k))
    assert [p.kind for p in modelled(graph, HALF, precision="fp16").kernels] == [kind]
