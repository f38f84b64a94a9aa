"""Scores that read the stream only, on a graph that is nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime as ort

from tcompile.core.graph import is_const, value
from tcompile.core.schedule import Spec
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.scores import ScoreInput, find_score
from tcompile.passes.reduce.token_state import TokenState
from tcompile.plugins.ops import add_functions
from tests.support.onnx_models import plain_options, to_onnx

Array = np.ndarray[Any, Any]


def scored(
    score: Spec,
    x: Array,
    *,
    prefix: int = 0,
    grid: tuple[int, ...] = (),
    index: Array | None = None,
    patches: int | None = None,
    positioned: bool = True,
) -> Array:
    """[B, T] of a score of tokens [B, prefix + T, C]; the batch is free in the graph.

    Args:
        index: [B, T], the original patch each one is; None: all are there.
        patches: how many there were.
    """
    count = x.shape[1] - prefix
    graph = gs.Graph(opset=17, ir_version=9)
    stream = gs.Variable("x", np.float32, ["batch", *x.shape[1:]])
    place = gs.Variable("index", np.int64, ["batch", count])
    graph.inputs = [stream] if index is None else [stream, place]
    stages = [TokenState(patches or count)]
    if index is not None:
        stages.append(TokenState(count, place, positioned=positioned))
    b = Builder(graph)
    given = ScoreInput(
        builder=b,
        attention=None,  # type: ignore[arg-type]
        x=stream,
        prefix=prefix,
        count=count,
        find=find_score,
        dense_count=patches or count,
        dense_grid=grid or (patches or count,),
        states=stages,
    )
    made = given.score(score)
    if is_const(made):
        return np.asarray(value(made))
    made.shape = ["batch", count]
    graph.outputs = [made]
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    add_functions(graph)
    session = ort.InferenceSession(
        to_onnx(graph).SerializeToString(), plain_options(), providers=["CPUExecutionProvider"]
    )
    feeds = {"x": x.astype(np.float32)}
    if index is not None:
        feeds["index"] = index.astype(np.int64)
    return np.asarray(session.run(None, feeds)[0])
