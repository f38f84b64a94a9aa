"""Graphs as ONNX models."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from tcompile.core.graph import opset_imports


def to_onnx(graph: gs.Graph) -> onnx.ModelProto:
    """The model of a graph, in memory; the product writes files (`core.save`)."""
    graph.import_domains = opset_imports(graph)
    model: onnx.ModelProto = gs.export_onnx(graph)
    model.producer_name = "tcompile"
    return model
