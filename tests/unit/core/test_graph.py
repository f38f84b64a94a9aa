"""Sorting a graph's nodes."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from tcompile.core.graph import CycleError, sort_nodes
from tcompile.models.onnx_vit import VitSpec, build_vit, random_weights


def test_nodes_are_sorted_as_graphsurgeon_does() -> None:
    """Shuffled, with a node that nothing needs; and a circle has no order."""
    spec = VitSpec()
    graph = gs.import_onnx(build_vit(spec, random_weights(spec)))
    graph.nodes.append(
        gs.Node("Relu", "unread", {}, [graph.inputs[0]], [gs.Variable("unread", np.float32)])
    )
    np.random.default_rng(0).shuffle(graph.nodes)
    expected = graph.copy()
    expected.cleanup(remove_unused_graph_inputs=False).toposort()
    sort_nodes(graph)
    assert [n.name for n in graph.nodes] == [n.name for n in expected.nodes]
    graph.nodes[0].inputs.append(graph.nodes[-1].outputs[0])
    with pytest.raises(CycleError):
        sort_nodes(graph)
