"""FLOPs of products, against PyTorch's own counter on the same shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tcompile.analysis.flops import graph_flops, node_flops

#: Operator, attributes, shapes of the operands, shape of the result.
_CASES: tuple[tuple[str, dict[str, Any], list[list[int]], list[int]], ...] = (
    ("MatMul", {}, [[2, 5, 7], [7, 3]], [2, 5, 3]),
    ("MatMul", {}, [[2, 4, 5, 7], [2, 4, 7, 5]], [2, 4, 5, 5]),
    ("Gemm", {}, [[5, 7], [7, 3]], [5, 3]),
    ("Gemm", {"transA": 1}, [[7, 5], [7, 3]], [5, 3]),
    ("Gemm", {"transB": 1}, [[5, 7], [3, 7]], [5, 3]),
    ("Conv", {"strides": [2, 2]}, [[1, 6, 9, 9], [4, 6, 3, 3]], [1, 4, 4, 4]),
    ("Conv", {"group": 2}, [[1, 6, 9, 9], [4, 3, 3, 3]], [1, 4, 7, 7]),
    ("ConvTranspose", {"strides": [2, 2]}, [[1, 6, 5, 5], [6, 4, 2, 2]], [1, 4, 10, 10]),
    ("ConvTranspose", {"group": 2}, [[1, 6, 5, 5], [6, 4, 3, 3]], [1, 8, 7, 7]),
)


def _in_torch(op: str, attributes: dict[str, Any]) -> Callable[..., Any]:
    import torch

    functional = torch.nn.functional
    how = {"stride": attributes.get("strides", 1), "groups": attributes.get("group", 1)}
    return {
        "MatMul": torch.matmul,
        "Gemm": lambda a, b: torch.mm(
            a.T if attributes.get("transA") else a, b.T if attributes.get("transB") else b
        ),
        "Conv": lambda x, w: functional.conv2d(x, w, **how),
        "ConvTranspose": lambda x, w: functional.conv_transpose2d(x, w, **how),
    }[op]


@pytest.mark.parametrize(("op", "attributes", "shapes", "result"), _CASES)
def test_products_count_as_pytorch_counts_them(
    op: str, attributes: dict[str, Any], shapes: list[list[int]], result: list[int]
) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        made = _in_torch(op, attributes)(*(torch.ones(s) for s in shapes))
    assert list(made.shape) == result
    inputs = [gs.Variable(f"x{i}", np.float32, s) for i, s in enumerate(shapes)]
    out = gs.Variable("y", np.float32, result)
    assert node_flops(gs.Node(op, "n", attributes, inputs, [out])) == counter.get_total_flops() > 0


def test_a_decoder_behind_the_encoder_counts() -> None:
    """What segmenters and saliency models spend most on, behind their blocks."""
    x, y = gs.Variable("x", np.float32, [2, 6, 5, 5]), gs.Variable("y", np.float32, [2, 4, 10, 10])
    weight = gs.Constant("w", np.ones((6, 4, 2, 2), np.float32))
    node = gs.Node("ConvTranspose", "up", {"strides": [2, 2]}, [x, weight], [y])
    assert graph_flops(gs.Graph([node], [x], [y])) == 2 * (6 * 5 * 5) * (4 * 2 * 2)  # of one image
