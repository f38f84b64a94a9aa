"""The attention that a model pays each token on images: for presets that learn their counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from tcompile.analysis.model import Analysis, tower_batch
from tcompile.core.copies import copied
from tcompile.core.errors import UsageError
from tcompile.core.node_order import drop_dead, toposort
from tcompile.core.schedule import Spec
from tcompile.passes.reduce.builder import Builder
from tcompile.passes.reduce.scores import find_score
from tcompile.passes.reduce.scores.base import ScoreInput
from tcompile.passes.reduce.segments import view_of
from tcompile.passes.reduce.token_state import TokenState
from tcompile.runtime.samples import Samples, run_graph

Array = np.ndarray[Any, np.dtype[np.float64]]
#: Scores → for each the shares [blocks, images, patches].
Observe = Callable[[Sequence[Spec]], list[Array]]


def observer(graph: gs.Graph, analysis: Analysis, read: Callable[[], Samples]) -> Observe:
    """A function that runs a model on images when asked for scores.

    Args:
        graph: the dense model in normal form.
        read: gives the images, prepared for the model; called when they are needed.
    """

    def observe(scores: Sequence[Spec]) -> list[Array]:
        return observed(graph, analysis, scores, read().arrays)

    return observe


def observed(
    graph: gs.Graph, analysis: Analysis, scores: Sequence[Spec], arrays: Mapping[str, Any]
) -> list[Array]:
    """Each score in every block of the dense model: [blocks, images, patches].

    Those of an image in a block are divided by their sum, so that they are shares.

    Args:
        arrays: the model's inputs by name, one image a row.

    Raises:
        UsageError: attention within windows, which such scores cannot read.
    """
    probed = copied(graph)
    names = _write(probed, analysis, scores)
    toposort(drop_dead(probed))
    found = run_graph(probed, Samples(arrays, "calibration", real=True))
    shares: list[Array] = []
    for per_block in names:
        # Models of packed patches, one image at a time, give one axis more.
        flat = [found[name].reshape(-1, analysis.space.patches) for name in per_block]
        whole = np.stack(flat).astype(np.float64)
        shares.append(whole / np.maximum(whole.sum(axis=-1, keepdims=True), 1e-12))
    return shares


def _write(graph: gs.Graph, analysis: Analysis, scores: Sequence[Spec]) -> list[list[str]]:
    """Make the scores of every block the graph's only outputs; their names."""
    b, space, first = Builder(graph), analysis.space, tower_batch(graph, analysis)
    nodes = {n.name: n for n in graph.nodes}
    batch = first if isinstance(first, int) else None
    names: list[list[str]] = [[] for _ in scores]
    graph.outputs.clear()
    for block in analysis.blocks:
        if any(a.columns != space.axis for a in block.attentions):
            raise UsageError(
                f"attention {block.index} does not see all tokens and nothing else: no counts can "
                "be learned of it",
                where="--calibration",
            )
        b.scope(f"calibration_{block.index}")
        attention = view_of(b, block.attentions, space.axis, nodes, batch)
        inputs = ScoreInput(
            builder=b,
            attention=attention,
            x=attention.product.inputs[0],
            prefix=space.prefix,
            count=space.patches,
            find=find_score,
            cls_positions=analysis.readers or (0,),
            dense_count=space.patches,
            states=[TokenState(space.patches)],
        )
        for i, spec in enumerate(scores):
            # An output of its own name: a score may be a tensor that is there already.
            out = b.op("Identity", inputs.score(spec))
            out.dtype, out.shape = np.dtype(np.float32), [first, space.patches]
            graph.outputs.append(out)
            names[i].append(str(out.name))
    return names
