"""Runs one pass on a small graph, as its stage would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tcompile import pipeline
from tcompile.core.schedule import Reduction, Schedule, Spec, TowerSchedule
from tcompile.passes import lower, normalize, reduce, resize
from tcompile.passes.lower.eight_bits import EightBits
from tcompile.passes.lower.ranges import Range, Wide
from tcompile.passes.normalize.batch_values import DimVectors, settle_batch_values
from tcompile.passes.normalize.bind_shapes import bind_inputs
from tcompile.passes.reduce.towers import reduce_towers
from tcompile.plugins.ops import add_functions
from tcompile.targets import load_target
from tcompile.targets.versions import TENSORRT
from tests.support.onnx_models import to_onnx

NORMALIZE = (*normalize.BEFORE, *normalize.ROUND, *normalize.AFTER)
#: What a pass is run with that does not do without.
OPTIONS: dict[str, dict[str, Any]] = {
    "lower/fuse-token-ops": {"token_ops": "plugin"},
    "lower/spell-rms-norm": {"target": "jetson-orin"},
    "lower/fold-scales": {"target": "cpu"},
    "lower/merge-turns": {"target": "cpu"},
    "lower/widen-merges": {"target": "cpu", "then": "inline-token-ops"},
    "lower/cast-pixels-first": {"target": "rtx-4090"},
    "lower/spell-attention": {"target": "rtx-4090"},
    "lower/keep-wide-ranges": {
        "precision": "mixed",
        "wide": Wide(
            lambda _: {
                "q": Range(-1e3, 1e3),
                "dots": Range(-1e5, 8e4),
                "scaled": Range(-1.25e4, 1e4),
                "hidden": Range(-3e4, 3e4),
                "positive": Range(0, 3e4),
            }
        ),
        "then": "to-half",
    },
    "lower/raise-opset": {"precision": "fp8", "eight_bits": "fp8"},
    "lower/to-eight-bits": {"precision": "int8", "eight_bits": "int8"},
    "lower/to-half": {"precision": "fp16"},
    "lower/spell-fp32-matmul": {"target": "t4"},
    "lower/lower-opset": {"target": "jetson-orin"},
    "lower/move-token-casts": {"token_ops": "plugin"},
    "lower/inline-token-ops": {"target": "cpu"},
    "lower/token-ops": {"token_ops": "plugin"},
}
#: Grids that a model is shown on, and who resizes its image.
GRIDS: dict[str, dict[str, Any]] = {
    "follow": {"grid": (2, 2), "host": True},
    "relative": {"grid": (2, 2), "host": True},
    "image": {"grid": (2, 2), "host": False},
}
#: Schedules that the reduce pass is shown with, and what else it is told.
REDUCTIONS: dict[str, dict[str, Any]] = {
    "drop": {"steps": [("attn:0", "cls", "topk", 4)]},
    "restored": {"steps": [("attn:0", "cls", "topk", 4)], "outputs": "restored"},
    "restored-nearest": {
        "steps": [("attn:0", "norm", "fuse", 4)],
        "outputs": "restored",
        "restore": "nearest",
    },
    "restored-similar": {
        "steps": [("attn:0", "cls", "topk", 4)],
        "outputs": "restored",
        "restore": "similar",
    },
    "restored-interpolate": {
        "steps": [("attn:0", "cls", "topk", 4)],
        "outputs": "restored",
        "restore": "interpolate",
    },
    "restored-stale": {
        "steps": [("attn:0", None, "merge", 5)],
        "outputs": "restored",
        "restore": "stale",
    },
    "bypass": {"steps": [("around:0", "norm", "bypass", 4)]},
    "side-inputs": {"steps": [("block:0", "norm", "topk", 4)]},
    "refused": {"steps": [("block:0", "norm", "topk", 4)]},
    "attention-op": {"steps": [("attn:0", "cls", "topk", 4)]},
    "spell-biased-attention": {"steps": [("inside:0", None, "merge", 5)]},
    "towers": {"steps": [("attn:0", "norm", "topk", 4)], "other": ("attn:0", "norm", "topk", 2)},
    "inside": {"steps": [("inside:0", None, "merge", 5)]},
}


def run(name: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph behind one pass, `STAGE/PASS`."""
    stage, pass_name = name.split("/")
    stages = {"normalize": _normalize, "lower": _lower, "reduce": _reduce, "resize": _resize}
    return stages[stage](pass_name, model)


def _normalize(name: str, model: onnx.ModelProto) -> onnx.ModelProto:
    graph = normalize.import_graph(model)
    free = bool(bind_inputs(graph, None, {}))
    state = normalize.Normalizing(graph, free, DimVectors(graph))
    at = [step.name for step in NORMALIZE].index(name)
    if at > len(normalize.BEFORE):
        normalize.infer_shapes(state)
    if name == "batch-expansion":
        settle_batch_values(graph, state.vectors, state.origins)
        normalize.infer_shapes(state)
    NORMALIZE[at].run(state)
    return to_onnx(state.graph)


def _lower(name: str, model: onnx.ModelProto) -> onnx.ModelProto:
    options = OPTIONS.get(f"lower/{name}", {})
    graph = gs.import_onnx(model)
    add_functions(graph)
    state = lower.Lowering(
        graph,
        load_target(options.get("target", "rtx-4090")),
        options.get("precision", "fp32"),
        options.get("token_ops", "native"),
        frozenset(options.get("fp32_nodes", ())),
        options.get("wide"),
        EightBits(options["eight_bits"], _looked, TENSORRT.attention["int8"])
        if "eight_bits" in options
        else None,
    )
    steps = {step.name: step for step in lower.PASSES[1:]}
    if name != lower.PASSES[0].name:
        lower.PASSES[0].run(state)
    if "then" in options:  # names are how one pass tells the next
        for node in graph.nodes:
            node.name = node.outputs[0].name
    for step in (steps.get(n, lower.PASSES[0]) for n in (name, options.get("then")) if n):
        assert step.when(state)
        step.run(state)
    return to_onnx(state.graph)


def _looked(graph: gs.Graph) -> Iterator[dict[str, Any]]:
    """What images could have said of a probed graph: 8 bits are too few for its second product."""
    found: dict[str, Any] = {}
    sums = [t.name for t in graph.outputs if t.inputs[0].op == "ReduceSum"]
    for tensor in graph.outputs:
        node = tensor.inputs[0]
        if tensor.name in sums:
            lost, second = sums.index(tensor.name) % 2 == 0, tensor.name in sums[2:4]
            found[tensor.name] = np.full(5, 1e-4 if lost and not second else 1.0, np.float32)
        elif node.attrs.get("axes") is None and len(node.inputs) == 1:
            found[tensor.name] = np.asarray(12.7, np.float32)
        else:
            found[tensor.name] = np.asarray([1, 4, 9, 16], np.float32)
    yield found


def _resize(name: str, model: onnx.ModelProto) -> onnx.ModelProto:
    with TemporaryDirectory() as folder:
        onnx.save(model, str(Path(folder) / "model.onnx"))
        read = pipeline.read(Path(folder) / "model.onnx")
    told = GRIDS[name]
    found = resize.on_grid(read, told["grid"])
    graph = found.model.graph.copy()
    resize.finish(graph, found, host=told["host"])
    return to_onnx(graph)


def _reduction(site: str, score: str | None, reducer: str, keep: int) -> Reduction:
    return Reduction(site, Spec(score) if score else None, Spec(reducer), keep)


def _reduce(name: str, model: onnx.ModelProto) -> onnx.ModelProto:
    """All of reduce with a schedule, or its passes up to the one of that name."""
    with TemporaryDirectory() as folder:
        onnx.save(model, str(Path(folder) / "model.onnx"))
        read = pipeline.read(Path(folder) / "model.onnx")
    told = REDUCTIONS.get(name, REDUCTIONS["drop"])
    reductions = tuple(_reduction(*step) for step in told["steps"])
    restore = told.get("restore")
    schedule = Schedule("golden", read.analysis.shape, reductions, restore=restore)
    if "other" in told:
        (other,) = read.analysis.others
        tower = TowerSchedule(other.tower, other.shape, (_reduction(*told["other"]),))
        schedule = replace(schedule, tower=read.analysis.tower, towers=(tower,))
        made, _ = reduce_towers(read.graph, read.analysis, schedule, strict=True)
        return to_onnx(made.graph)
    steps = [step.name for step in reduce.PASSES]
    passes = reduce.PASSES[: steps.index(name) + 1] if name in steps else reduce.PASSES
    found: list[gs.Graph] = []

    def note(state: Any, *_: Any) -> int:
        for step in passes:
            step.run(state)
        found.append(state.graph)
        return 0

    outputs = told.get("outputs", "reduced")
    with mock.patch.object(reduce, "run", note):
        reduce.reduce_graph(read.graph, read.analysis, schedule, outputs=outputs)
    return to_onnx(found[0])
