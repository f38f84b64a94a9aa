"""Nodes in order, and dead ones gone, as by onnx_graphsurgeon itself."""

from __future__ import annotations

import random
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from tcompile.core.node_order import drop_dead, toposort
from tests.support.tiny_vit import save_tiny_vit


def shuffled(model: onnx.ModelProto, seed: int) -> gs.Graph:
    graph = gs.import_onnx(model)
    nodes = list(graph.nodes)
    random.Random(seed).shuffle(nodes)
    graph.nodes = nodes
    # What lies behind a tensor in the middle is dead.
    graph.outputs = [nodes[seed].outputs[0], *graph.outputs[seed % 2 :]]
    return graph


def told(graph: gs.Graph) -> list[tuple[str, list[str]]]:
    """Each node, and how often each of its outputs is read."""
    return [(n.op, [f"{t.name} {len(t.outputs)}" for t in n.outputs]) for n in graph.nodes]


@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_graphsurgeon_does(tmp_path: Path, seed: int) -> None:
    model = onnx.load(save_tiny_vit(tmp_path / "vit.onnx"))
    ours, theirs = shuffled(model, seed), shuffled(model, seed)
    assert told(drop_dead(ours)) == told(theirs.cleanup(remove_unused_graph_inputs=False))
    assert told(toposort(ours)) == told(theirs.toposort())


def test_a_circle_is_told() -> None:
    a, b = gs.Variable("a", "float32", [1]), gs.Variable("b", "float32", [1])
    nodes = [gs.Node("Relu", "first", {}, [a], [b]), gs.Node("Relu", "second", {}, [b], [a])]
    with pytest.raises(OnnxGraphSurgeonException, match="Cycle"):
        toposort(gs.Graph(nodes, [], [b]))
