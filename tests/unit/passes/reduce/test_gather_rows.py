"""Rows taken along token axes, in every layout of batch and heads, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest

from tcompile.analysis import axes as ax
from tcompile.analysis.axes import Axes
from tcompile.analysis.effects import SideAxis
from tcompile.analysis.token_dims import Run
from tcompile.core.errors import ModelError
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.gather_rows import Mover
from tests.support.onnx_models import to_onnx

B, HEADS, N, C = 3, 2, 5, 4
BATCH = ax.new("batch", 1009, "batch")
HEAD, TOKENS, OTHERS = (
    ax.new("heads", HEADS, "untracked"),
    ax.new("tokens", N, "data"),
    ax.new("channels", C, "untracked"),
)
INDEX = np.array([[0, 3], [4, 1], [2, 2]])


def gathered(x: np.ndarray[Any, Any], result: Axes, axis: int, free: bool) -> Any:
    """`x` at INDEX along an axis, as ONNX Runtime computes it; `free`: its first dim is."""
    shape = [("B" if free and i == 0 else n) for i, n in enumerate(x.shape)]
    tensor = gs.Variable("x", np.float32, shape)
    index = gs.Variable("index", np.int64, ["I", 2])
    graph = gs.Graph(inputs=[tensor, index], opset=17)
    dims = [0 if free and i == 0 else n for i, n in enumerate(x.shape)]
    mover = Mover(Builder(graph), None, {"index": 2})
    out = mover.gather(tensor, result, [SideAxis(axis, Run(0, 1))], [index], dims)
    out.dtype = np.float32
    graph.outputs = [out]
    if not free:
        # ONNX Runtime takes it where the batches differ, the specification and TensorRT do not.
        assert "GatherND" not in [node.op for node in graph.nodes]
    model = to_onnx(graph.cleanup().toposort())
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x, "index": INDEX})[0]


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_each_sample_takes_its_own_rows() -> None:
    x = numbers(B, N, C)
    want = np.stack([x[i, INDEX[i]] for i in range(B)])
    assert np.array_equal(gathered(x, (BATCH, TOKENS, OTHERS), 1, True), want)


@pytest.mark.parametrize("shape", [(1, N, C), (N, C)], ids=["of-one", "without-batch"])
def test_all_samples_take_rows_of_one_table(shape: tuple[int, ...]) -> None:
    x = numbers(*shape)
    got = gathered(x, (BATCH, TOKENS, OTHERS), len(shape) - 2, False)
    assert np.array_equal(got, x.reshape(N, C)[INDEX])


def test_batch_and_heads_in_one_axis() -> None:
    x = numbers(B * HEADS, N, C)
    want = np.stack([x.reshape(B, HEADS, N, C)[i][:, INDEX[i]] for i in range(B)])
    got = gathered(x, (BATCH + HEAD, TOKENS, OTHERS), 1, True)
    assert np.array_equal(got, want.reshape(B * HEADS, 2, C))


@pytest.mark.parametrize("shape", [(1, N, C), (N, C)], ids=["of-one", "without-batch"])
def test_a_table_for_batch_and_heads_in_one_axis(shape: tuple[int, ...]) -> None:
    x = numbers(*shape)
    want = np.repeat(x.reshape(N, C)[INDEX], HEADS, 0)
    got = gathered(x, (BATCH + HEAD, TOKENS, OTHERS), len(shape) - 2, False)
    assert np.array_equal(got, want)


def test_a_batch_joined_with_tokens_is_refused() -> None:
    with pytest.raises(ModelError, match="merges the batch with another axis"):
        gathered(numbers(B * N, C), (BATCH + TOKENS, OTHERS), 0, True)
