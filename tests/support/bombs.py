"""Small models that ask for more memory or time than there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_MANY = 1 << 36
_SIDE = 1 << 18


def _stored(model: onnx.ModelProto, name: str, value: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def _read_by_first_norm(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Add the largest value of what the last node makes to what the first norm reads."""
    place = next(i for i, n in enumerate(model.graph.node) if n.op_type == "LayerNormalization")
    norm = model.graph.node[place]
    more = [
        helper.make_node("ReduceMax", [nodes[-1].output[0]], ["most"], "most", keepdims=0),
        helper.make_node("Cast", ["most"], ["most_float"], "most_float", to=TensorProto.FLOAT),
        helper.make_node("Add", [norm.input[0], "most_float"], ["with_most"], "with_most"),
    ]
    norm.input[0] = "with_most"
    for i, node in enumerate([*nodes, *more]):
        model.graph.node.insert(place + i, node)


def makes_many(op: str) -> Callable[[onnx.ModelProto], None]:
    """A change that lets one op make 2^36 values or more of a few numbers in the file."""

    def damage(model: onnx.ModelProto) -> None:
        one = _stored(model, "one", np.ones((1, 1), np.float32))
        square = _stored(model, "square", [_SIDE, _SIDE])
        inputs = {
            "Range": [_stored(model, f"n{v}", np.int64(v)) for v in (0, _MANY, 1)],
            "ConstantOfShape": [square],
            "Expand": [one, square],
            "Tile": [one, square],
            "Pad": [one, _stored(model, "pads", [0, 0, _SIDE, _SIDE])],
            "Resize": [one, "", _stored(model, "scales", np.float32([_SIDE, _SIDE]))],
        }[op]
        _read_by_first_norm(model, [helper.make_node(op, inputs, ["many"], "many")])

    damage.__name__ = f"makes_many_{op}"
    return damage


def many_by_broadcast(model: onnx.ModelProto) -> None:
    rows, columns = _stored(model, "rows", [_SIDE, 1]), _stored(model, "columns", [1, _SIDE])
    nodes = [
        helper.make_node("ConstantOfShape", [rows], ["a"], "a"),
        helper.make_node("ConstantOfShape", [columns], ["b"], "b"),
        helper.make_node("Add", ["a", "b"], ["many"], "many"),
    ]
    _read_by_first_norm(model, nodes)


def many_of_an_input(model: onnx.ModelProto) -> None:
    dims = _stored(model, "dims", [1 << 16, 1 << 10, 1, 1, 1])
    name = model.graph.input[0].name
    _read_by_first_norm(model, [helper.make_node("Expand", [name, dims], ["many"], "many")])


def more_than_numbers_count(model: onnx.ModelProto) -> None:
    """2^72 values, which are 0 in 64 bits."""
    dims = _stored(model, "dims", [_MANY, _MANY])
    _read_by_first_norm(model, [helper.make_node("ConstantOfShape", [dims], ["many"], "many")])


def packed_weight(model: onnx.ModelProto) -> None:
    """A stored tensor of 2^36 values of four bits that holds none."""
    model.graph.initializer.append(
        onnx.TensorProto(name="many", data_type=TensorProto.UINT4, dims=[_MANY])
    )
    _read_by_first_norm(model, [helper.make_node("Cast", ["many"], ["m"], "m", to=1)])


def many_calls(model: onnx.ModelProto) -> None:
    """Functions that each call the one before twice: 2^40 nodes."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("loc", 1)]
    model.opset_import.append(opsets[1])
    for i in range(40):
        op, domain = (f"F{i - 1}", "loc") if i else ("Neg", "")
        body = [
            helper.make_node(op, ["x"], ["t"], domain=domain),
            helper.make_node(op, ["t"], ["y"], domain=domain),
        ]
        model.functions.append(helper.make_function("loc", f"F{i}", ["x"], ["y"], body, opsets))
    node = next(n for n in model.graph.node if n.op_type == "Erf")
    node.domain, node.op_type = "loc", "F39"


#: Change → what the refusal says.
BOMBS: tuple[tuple[Callable[[onnx.ModelProto], None], str], ...] = (
    *(
        (makes_many(op), f"({op}|Expand) 'many' makes a tensor of .* more than can be computed")
        for op in ("Range", "ConstantOfShape", "Expand", "Tile", "Pad", "Resize")
    ),
    (many_by_broadcast, "Add 'many' makes a tensor of 262144 × 262144"),
    (many_of_an_input, "Expand 'many' makes"),
    (more_than_numbers_count, "ConstantOfShape 'many' makes"),
    (packed_weight, "'many' hold 0 values, their shape .* needs 34359738368"),
    (many_calls, "functions call each other so often"),
)
