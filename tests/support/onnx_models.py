"""Graphs as ONNX models."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs
import onnxruntime

from tcompile.core.graph import opset_imports


def to_onnx(graph: gs.Graph) -> onnx.ModelProto:
    """The model of a graph, in memory; the product writes files (`core.save`)."""
    graph.import_domains = opset_imports(graph)
    model: onnx.ModelProto = gs.export_onnx(graph)
    model.producer_name = "tcompile"
    return model


def plain_options() -> onnxruntime.SessionOptions:
    """Options of a session that runs a small model as it is written, on one thread: to optimise it
    takes longer than to run it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options
