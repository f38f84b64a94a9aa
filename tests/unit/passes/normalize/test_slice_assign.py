"""Assignments to slices: the same numbers as ScatterND in ONNX's reference evaluator."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx.reference import ReferenceEvaluator

from tcompile.passes.normalize.slice_assign import spell_slice_assignments
from tests.support.onnx_models import to_onnx

SIZES = (3, 4, 5)


def _graph(slices: tuple[slice, ...], *, turned: bool = False) -> gs.Graph:
    """x[slices] = y, as the TorchScript exporter writes it."""
    ranges = [np.arange(n)[s] for n, s in zip(SIZES, slices, strict=False)]
    indices = np.stack(np.meshgrid(*ranges, indexing="ij"), -1)
    if turned:
        indices = indices[::-1].copy()
    shape = (*indices.shape[:-1], *SIZES[len(slices) :])
    x, y = gs.Variable("x", np.float32, SIZES), gs.Variable("y", np.float32, shape)
    out = gs.Variable("out", np.float32, SIZES)
    node = gs.Node("ScatterND", "assign", {}, [x, gs.Constant("indices", indices), y], [out])
    return gs.Graph([node], [x, y], [out], opset=18)


def _run(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    (out,) = ReferenceEvaluator(model).run(None, inputs)
    return np.asarray(out)


CHOICES = (slice(None), slice(1, None), slice(0, 2), slice(1, 3), slice(-2, -1))


@pytest.mark.parametrize(
    "slices", [c for n in (1, 2, 3) for c in itertools.product(CHOICES, repeat=n)][::3]
)
def test_slices(slices: tuple[slice, ...]) -> None:
    graph = _graph(slices)
    rng = np.random.default_rng(0)
    inputs = {str(t.name): rng.normal(size=t.shape).astype(np.float32) for t in graph.inputs}
    expected = _run(to_onnx(graph), inputs)
    assert spell_slice_assignments(graph) == 1
    assert {n.op for n in graph.nodes} <= {"Slice", "Concat", "Identity"}
    onnx.checker.check_model(to_onnx(graph), full_check=True)
    np.testing.assert_array_equal(_run(to_onnx(graph), inputs), expected)


def test_what_is_no_slice_stays() -> None:
    assert spell_slice_assignments(_graph((slice(1, 3),), turned=True)) == 0
    assert spell_slice_assignments(_graph((slice(0, 3, 2), slice(None)))) == 0
    added = _graph((slice(1, 3),))
    added.nodes[0].attrs["reduction"] = "add"
    assert spell_slice_assignments(added) == 0
