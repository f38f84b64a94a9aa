"""The op table: every op is described whole, and one that is not is refused by its name."""

from __future__ import annotations

from dataclasses import fields

import onnx
import pytest

from tcompile.analysis import ops
from tcompile.analysis.model import analyse
from tcompile.analysis.ops import OPS, Op
from tcompile.core.errors import InternalError
from tcompile.core.op_traits import TRAITS
from tcompile.passes.normalize import normalize
from tests.support.tiny_vit import VitSpec, build_vit, random_weights


def test_an_op_has_its_traits_its_transfer_and_its_effect() -> None:
    assert set(OPS) == set(TRAITS)
    for name, op in OPS.items():
        lacking = [
            f.name for f in fields(Op) if f.name != "traits" and not callable(getattr(op, f.name))
        ]
        assert not lacking, f"{name} has no {', '.join(lacking)}"
        assert op.traits == TRAITS[name]


def test_the_names_are_those_of_onnx() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(OPS) - known == {"SimplifiedLayerNormalization"} - known


@pytest.mark.parametrize("names", ["Relu", "Hardmax"])
def test_a_row_that_is_there_twice_or_without_traits_is_refused(
    names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, *functions), *_ = ops._ROWS
    monkeypatch.setattr(ops, "_ROWS", (*ops._ROWS, (names, *functions)))
    with pytest.raises(InternalError, match=f"'{names}'"):
        ops._table()


@pytest.mark.parametrize("op", ["Hardmax", "Trilu"])
def test_an_unknown_op_on_a_token_axis_is_refused_by_name(op: str) -> None:
    spec = VitSpec(depth=2)
    model = build_vit(spec, random_weights(spec), batch=1)
    softmax = next(n for n in reversed(model.graph.node) if n.op_type == "Softmax")
    at = list(model.graph.node).index(softmax)
    model.graph.node.insert(
        at, onnx.helper.make_node(op, softmax.input, ["strange"], "a_strange_one")
    )
    model.graph.node[at + 1].input[0] = "strange"
    site = analyse(normalize(model).graph).site("block:0")
    assert site is not None
    assert f"{op} 'a_strange_one' is not an op that tcompile knows" in site.reason
