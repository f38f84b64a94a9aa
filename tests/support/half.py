"""Half precision as it is written: every operator in numpy, in the type of its inputs.

ONNX Runtime computes most of a float16 graph in float32 on a CPU, so that nothing overflows there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = np.ndarray[Any, Any]


class GatherElements(OpRun):  # type: ignore[misc]
    """The one of onnx takes no more than 64 rows."""

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Array]:
        return (np.take_along_axis(data, indices, axis),)


class LayerNormalization(OpRun):  # type: ignore[misc]
    """In float32 inside, as its `stash_type` says and the one of onnx does not."""

    def _run(
        self, x: Array, scale: Array, bias: Array, axis: int, epsilon: float, stash_type: int
    ) -> tuple[Array]:
        wide = x.astype(np.float32)
        middle = wide - wide.mean(-1, keepdims=True)
        unit = middle / np.sqrt((middle**2).mean(-1, keepdims=True) + epsilon)
        return ((unit * scale + bias).astype(x.dtype),)


def run_as_written(model: onnx.ModelProto, feed: dict[str, Array]) -> dict[str, Array]:
    """All outputs by name."""
    flat = onnx.inliner.inline_local_functions(model)
    evaluator = ReferenceEvaluator(flat, new_ops=[GatherElements, LayerNormalization])
    names = [output.name for output in model.graph.output]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return dict(zip(names, evaluator.run(names, feed), strict=True))
