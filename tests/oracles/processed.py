"""Changes that people and their tools make to a model after it was exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

Processor = Callable[[Path, Path], None]


def onnxslim(source: Path, target: Path) -> None:
    """onnxslim's default optimisation."""
    import onnxslim

    onnx.save(onnxslim.slim(str(source)), target)


def ort_basic(source: Path, target: Path) -> None:
    """ONNX Runtime's graph optimisation, level BASIC, saved as a model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def external_data(source: Path, target: Path) -> None:
    """Every weight in a file beside the model."""
    onnx.save_model(
        onnx.load(source),
        target,
        save_as_external_data=True,
        location=f"{target.stem}.data",
        size_threshold=0,
    )


def renamed(source: Path, target: Path) -> None:
    """Every node and inner tensor under a name that says nothing; no metadata, no value_info."""
    model = onnx.load(source)
    graph = model.graph
    fixed = {info.name for info in (*graph.input, *graph.output)} | {""}
    names: dict[str, str] = {}

    def name_of(old: str) -> str:
        return old if old in fixed else names.setdefault(old, f"x{len(names)}")

    for tensor in graph.initializer:
        tensor.name = name_of(tensor.name)
    for number, node in enumerate(graph.node):
        node.name = f"n{number}"
        del node.metadata_props[:]
        node.doc_string = ""
        for names_of in (node.input, node.output):
            for i, old in enumerate(names_of):
                names_of[i] = name_of(old)
    del graph.value_info[:]
    del model.metadata_props[:]
    onnx.save(model, target)


PROCESSORS: tuple[Processor, ...] = (onnxslim, ort_basic, external_data, renamed)
