"""Fill in element types and shapes that rewriting left out."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from tcompile.errors import InternalError
from tcompile.passes.normalize.infer import infer


def complete(graph: gs.Graph) -> None:
    """Note the type and shape of every tensor, in place, by inference where they are missing.

    Raises:
        ModelError: shapes contradict each other.
        InternalError: inference cannot tell the type of a tensor.
    """
    if not _untyped(graph):
        return
    infer(graph, symbolic=True)
    missing = _untyped(graph)
    if missing:
        raise InternalError(f"the element type of '{missing[0]}' cannot be told")


def _untyped(graph: gs.Graph) -> list[str]:
    return [
        tensor.name
        for node in graph.nodes
        for tensor in node.outputs
        if not tensor.is_empty() and tensor.dtype is None
    ]
