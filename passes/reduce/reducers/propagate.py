"""R6: what leaves is handed on to its neighbours in a graph (GTP).

Xu et al., GTP-ViT (WACV 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.core.errors import UsageError
from tcompile.core.parameters import Parameter
from tcompile.passes.reduce.reducers.base import Ask, Reducer, ReducerInput
from tcompile.passes.reduce.reducers.common import (
    beside,
    choose,
    others,
    planes,
    rows,
    sorts,
    staying,
)
from tcompile.passes.reduce.token_state import TokenState

#: Where a state keeps the graph of its tokens, so that it need not be made again.
_GRAPH = "propagate/graph"


def propagate(inputs: ReducerInput) -> tuple[gs.Tensor, TokenState]:
    """x' = [prefix | x_k + α Σ_{p∉S} Â_kp x_p, k ∈ S | suffix], S = the K best, ascending; fp32
    inside. Â = D^-½ G D^-½ by row sums D; G_ij = 1 where j is one of the `neighbours` (8 or 4)
    around i in the grid, or one of the `semantic` others of largest cosine to i.

    The graph is that of the patches as they enter the first block; what is left of them has the
    rows and columns of Â that are theirs, not normalised again. sizes: t_k += α Σ Â_kp t_p, from 1,
    whose logarithm later attentions add.

    Raises:
        UsageError: a token before it has no position.
    """
    b, before, parameters = inputs.builder, inputs.state, inputs.parameters
    kept = choose(inputs, inputs.keep)
    gone = others(b, kept, before.count, before.count - inputs.keep)
    patches = inputs.of_patches(inputs.x, fp32=False)
    known = before.cache.get(_GRAPH)
    # [B, T, T] → [B, K, T] → [B, T, K]
    columns = b.transpose(rows(b, _of_tokens(inputs) if known is None else known, kept), [0, 2, 1])
    alpha = b.const([parameters["alpha"]], np.float32)
    weight = b.op("Mul", b.transpose(rows(b, columns, gone), [0, 2, 1]), alpha)

    best = rows(b, patches, kept)
    handed = b.op("Add", best, b.op("MatMul", weight, rows(b, patches, gone)))
    slots = b.const(np.arange(inputs.keep))
    step = b.call("TcNearestTokens", patches, kept, slots, dtypes=[np.int64])[0]
    changes: dict[str, Any] = {}
    if parameters["sizes"]:
        changes = {"size": _scales(inputs, weight, kept, gone), "prop_attn": True}
    after = staying(inputs, kept, step, **changes)
    after.cache[_GRAPH] = b.transpose(rows(b, columns, kept), [0, 2, 1])
    return inputs.joined(handed, fp32=False), after


def _of_tokens(inputs: ReducerInput) -> gs.Tensor:
    """[B, T, T]: Â of the tokens as they are."""
    b, index = inputs.builder, inputs.state.index
    graph = _graph(inputs)
    if index is None:
        return graph
    if not inputs.state.positioned:
        raise UsageError("'propagate' needs tokens that all have a position", where="schedule")
    return b.transpose(rows(b, b.transpose(rows(b, graph, index), [0, 2, 1]), index), [0, 2, 1])


def _graph(inputs: ReducerInput) -> gs.Tensor:
    """[B, T0, T0]: Â of the patches as they enter the first block."""
    b, parameters, count = inputs.builder, inputs.parameters, inputs.dense_count
    assert inputs.encoder_input is not None
    end = inputs.prefix + count
    directions = b.unit(b.slice(inputs.encoder_input(), 1, inputs.prefix, end, fp32=False))
    cosine = b.op("MatMul", directions, b.transpose(directions, [0, 2, 1]))
    # No token is its own neighbour: 4 is beyond every cosine.
    alike = b.op("Sub", cosine, b.const(4 * np.eye(count)[None], np.float32))
    zero, one = b.const([0], np.float32), b.const([1], np.float32)
    value, best = b.top_k(alike, min(parameters["semantic"], count - 1))
    ones = b.op("Add", b.op("Mul", value, zero), one)
    near = b.op("ScatterElements", b.op("Mul", cosine, zero), best, ones, axis=2)
    spatial = beside(planes(inputs.dense_grid, count), parameters["neighbours"])
    graph = b.op("Max", near, b.const(spatial[None], np.float32))
    degree = b.op("Sqrt", b.reduce("Sum", graph, [2], 1))
    return b.op("Div", b.op("Div", graph, degree), b.transpose(degree, [0, 2, 1]))


def _scales(inputs: ReducerInput, weight: gs.Tensor, kept: gs.Tensor, gone: gs.Tensor) -> gs.Tensor:
    """[B, K]: t_k + α Σ Â_kp t_p."""
    b, size = inputs.builder, inputs.state.size
    if size is None:
        return b.op("Add", b.reduce("Sum", weight, [2]), b.const([1], np.float32))
    own, leaving = (b.op("GatherElements", size, i, axis=1) for i in (kept, gone))
    more = b.op("MatMul", weight, b.unsqueeze(leaving, 2))
    return b.op("Add", own, b.squeeze(more, 2))


def _problem(ask: Ask) -> str:
    if not planes(ask.dense_grid, max(int(np.prod(ask.dense_grid or (0,))), 1)):
        return "propagation needs a model whose patches are a grid, which this one's are not"
    return sorts(ask.keep, ask.count - ask.keep, ask.parameters["semantic"])


def _by(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {"traits": frozenset({"merge"} if parameters["sizes"] else ())}


REDUCER = Reducer(
    "propagate",
    propagate,
    {
        "alpha": Parameter(float, 0.2, "how much of what leaves is handed on", least=0.0),
        "neighbours": Parameter(int, 8, "neighbours of a token in the grid", (4, 8)),
        "semantic": Parameter(int, 8, "others that a token is most like", least=1),
        "sizes": Parameter(bool, False, "later attentions count what was handed on"),
    },
    problem=_problem,
    by=_by,
)
