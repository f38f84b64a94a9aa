"""Views that end where they began change nothing: not the graph, and not which sites are legal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tcompile import pipeline
from tests.support.fuzz_draft import shapes_of
from tests.support.tiny_vit import VitSpec, build_vit, random_weights

SPEC = VitSpec(image=24, patch=6, width=12, depth=2)
View = tuple[str, Any]
#: Views of [B, 17, 12], B its batch, that end where they began.
PAIRS: dict[str, Sequence[View]] = {
    "features apart": [("Reshape", [0, 17, 3, 4]), ("Reshape", [0, 17, 12])],
    "tokens first": [("Transpose", [1, 0, 2]), ("Transpose", [1, 0, 2])],
    "features first": [("Transpose", [0, 2, 1]), ("Transpose", [0, 2, 1])],
    "an axis more": [("Unsqueeze", [1]), ("Squeeze", [1])],
    "an axis behind": [("Unsqueeze", [3]), ("Reshape", [0, 17, 12])],
    "rows": [("Reshape", [-1, 12]), ("Reshape", [-1, 17, 12])],
    "flat": [("Flatten", 2), ("Reshape", [-1, 17, 12])],
    "Identity": [("Identity", None)],
    "round": [("Transpose", [2, 0, 1])] * 3,
    "turned inside": [
        ("Reshape", [0, 17, 2, 6]),
        ("Transpose", [0, 2, 1, 3]),
        ("Identity", None),
        ("Transpose", [0, 2, 1, 3]),
        ("Reshape", [0, 17, 12]),
    ],
}


def _node(graph: onnx.GraphProto, view: View, given: str, made: str) -> onnx.NodeProto:
    op, value = view
    if op in ("Transpose", "Flatten", "Identity"):
        name = {"Transpose": "perm", "Flatten": "axis"}.get(op)
        return helper.make_node(op, [given], [made], name=made, **({name: value} if name else {}))
    stored = numpy_helper.from_array(np.asarray(value, np.int64), f"{made}/dims")
    graph.initializer.append(stored)
    return helper.make_node(op, [given, stored.name], [made], name=made)


def _with_views(model: onnx.ModelProto, chains: Sequence[Sequence[View]]) -> int:
    """Put views behind every tensor of the stream, for all of its readers."""
    shapes, graph = shapes_of(model), model.graph
    stream = [n for n in graph.node if shapes[n.output[0]][1:] == (17, 12) and n.op_type == "Add"]
    for node, chain in zip(stream, cycle(chains), strict=False):
        source = current = node.output[0]
        readers = [n for n in graph.node if source in n.input]
        at = list(graph.node).index(node)
        for i, view in enumerate(chain):
            made = f"{source}/view_{i}"
            graph.node.insert(at + 1 + i, _node(graph, view, current, made))
            current = made
        for reader in readers:
            for i, name in enumerate(reader.input):
                if name == source:
                    reader.input[i] = current
    return len(stream)


@pytest.mark.parametrize("batch", [2, None])
def test_views_of_the_stream_change_no_site(batch: int | None, tmp_path: Path) -> None:
    plain, path = build_vit(SPEC, random_weights(SPEC), batch=batch), tmp_path / "model.onnx"
    onnx.save(plain, path)
    wanted = pipeline.read(path)
    for turn in range(2):
        model = onnx.ModelProto()
        model.CopyFrom(plain)
        chains = list(PAIRS.values())
        assert _with_views(model, chains[5 * turn :] + chains) > 5
        onnx.save(model, path)
        found = pipeline.read(path)
        assert [n.op for n in found.graph.nodes] == [n.op for n in wanted.graph.nodes]
        assert [(s.name, s.reduced) for s in found.analysis.sites] == [
            (s.name, s.reduced) for s in wanted.analysis.sites
        ]
