"""Fill in element types and shapes that rewriting left out."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.core.errors import InternalError
from tcompile.passes.normalize.infer import infer


def complete(graph: gs.Graph) -> None:
    """Note the type and shape of every tensor, in place, by inference where they are missing.

    Raises:
        ModelError: shapes contradict each other.
        InternalError: inference cannot tell the type of a tensor.
    """
    variables = [t for t in graph.tensors().values() if isinstance(t, gs.Variable)]
    if all(t.dtype is not None and t.shape is not None for t in variables):
        return
    known = [(tensor, tensor.dtype, tensor.shape) for tensor in variables]
    infer(graph, symbolic=True)
    for tensor, dtype, shape in known:
        # What was noted stays: inference does not see through every function.
        tensor.dtype = tensor.dtype if dtype is None else dtype
        tensor.shape = tensor.shape if shape is None else shape
    for tensor in variables:
        if tensor.dtype is None and not tensor.is_empty():
            raise InternalError(f"the element type of '{tensor.name}' cannot be told")
