"""Copies of graphs and maps of their tensors, as by onnx_graphsurgeon itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from tcompile.core.copies import copied
from tcompile.core.graph import is_const, tensors_of
from tcompile.core.subgraph import extract
from tcompile.passes.normalize.infer import infer
from tests.support.onnx_models import to_onnx
from tests.support.tiny_vit import save_tiny_vit

BRANCHES = """<ir_version: 9, opset_import: ["" : 17]> g (float[2] x, bool c) => (float[2] y) {
    r = Relu (x)
    y = If (c) <
        then_branch = t () => (float[2] u) { u = Neg (r) },
        else_branch = e () => (float[2] w) { w = Identity (x) }>
}"""
OMITTED = """<ir_version: 9, opset_import: ["" : 17]> g (float[2,4] x) => (float[2,2] y) {
    lo = Constant <value_floats = [0.5]> ()
    one = Squeeze (lo)
    a = Clip (x, , one)
    y, rest = Split <axis = 1> (a)
}"""


def written(graph: gs.Graph) -> bytes:
    return bytes(to_onnx(graph).SerializeToString(deterministic=True))


def links(graph: gs.Graph) -> list[Any]:
    """Who makes and who reads each tensor, by name; what a file does not have."""
    return [
        (name, is_const(t), [n.name for n in t.inputs], [n.name for n in t.outputs])
        for name, t in tensors_of(graph).items()
    ]


@pytest.fixture(params=["vit", "branches", "omitted"])
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> gs.Graph:
    if request.param == "vit":
        return gs.import_onnx(onnx.load(save_tiny_vit(tmp_path / "vit.onnx")))
    text = {"branches": BRANCHES, "omitted": OMITTED}[request.param]
    return gs.import_onnx(onnx.parser.parse_model(text))


def test_a_copy_is_what_graphsurgeon_makes(graph: gs.Graph) -> None:
    ours, theirs = copied(graph), graph.copy()
    assert written(ours) == written(theirs)
    assert links(ours) == links(theirs)
    assert vars(ours).keys() == vars(theirs).keys()
    for mine, other in zip(ours.nodes, theirs.nodes, strict=True):
        assert vars(mine).keys() == vars(other).keys()
        assert [t.name for t in mine.inputs] == [t.name for t in other.inputs]
    for name, tensor in theirs.tensors().items():
        new = tensors_of(ours)[name]
        assert type(new) is type(tensor)
        assert vars(new).keys() == vars(tensor).keys()


def test_a_copy_shares_weights_and_nothing_else(graph: gs.Graph) -> None:
    before = written(graph)
    ours = copied(graph)
    old = tensors_of(graph)
    for name, tensor in tensors_of(ours).items():
        assert tensor is not old[name]
        if is_const(tensor):
            assert tensor._values is old[name]._values
    for node in ours.nodes:
        node.attrs["added"] = 1
        node.name += "_"
        node.inputs.clear()
        node.outputs.clear()
    assert written(graph) == before


def test_a_copy_keeps_its_lists_in_step(graph: gs.Graph) -> None:
    ours = copied(graph)
    node = next(n for n in ours.nodes if n.inputs)
    read, made = node.inputs[0], gs.Variable("new", np.float32)
    node.inputs[0] = made
    assert all(reader is not node for reader in read.outputs)
    assert [n is node for n in made.outputs] == [True]


def test_tensors_are_those_of_graphsurgeon_in_order(graph: gs.Graph) -> None:
    ours, theirs = tensors_of(graph), graph.tensors()
    assert list(ours) == list(theirs)
    assert all(ours[name] is theirs[name] for name in theirs)


def test_a_part_has_what_it_reads_and_no_more(tmp_path: Path) -> None:
    whole = gs.import_onnx(onnx.load(save_tiny_vit(tmp_path / "vit.onnx")))
    last = whole.nodes[-1]
    kept = {n.name for n in whole.nodes[-4:]}
    infer(whole)
    before = written(whole)
    part = extract(whole, kept, [last.outputs[0].name])
    assert {n.name for n in part.nodes} <= kept
    made = {o.name for n in part.nodes for o in n.outputs}
    read = {t.name for n in part.nodes for t in n.inputs if t.name and not is_const(t)}
    assert [t.name for t in part.inputs] == [t.name for t in part.inputs if t.name in read - made]
    assert {t.name for t in part.inputs} == read - made
    onnx.checker.check_model(to_onnx(part))
    assert written(whole) == before
