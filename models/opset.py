"""Opset 18 back to 17.

Dynamo knows no opset below 18; the converter that torch would fall back to leaves 18 in place, or
writes attributes that 17 does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import numpy_helper

from tcompile.core.errors import ModelError


def opset_of(proto: onnx.ModelProto) -> int:
    """The opset of the default domain; 0 if the model imports none."""
    found = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    return int(found[0]) if found else 0


def lower_to_17(proto: onnx.ModelProto) -> None:
    """Turn an opset 18 model into an opset 17 one, in place.

    Ops whose definition did not change between the two stay as they are; Reduce* get their axes
    as an attribute again; a Split into equal parts needs no `num_outputs`, a Pad no axes.

    Raises:
        ModelError: some other op changed.
    """
    if opset_of(proto) != 18 or proto.functions:
        raise ModelError(f"opset {opset_of(proto)} cannot be turned into 17")
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in proto.graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    values = (*proto.graph.value_info, *proto.graph.input)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in values}
    for node in proto.graph.node:
        if node.domain not in ("", "ai.onnx") or _unchanged(node.op_type):
            continue
        if node.op_type.startswith("Reduce"):
            _axes_to_attribute(node, constants)
        elif node.op_type == "Split":
            _drop_num_outputs(node, shapes)
        elif node.op_type == "Pad" and not any(node.input[3:]):
            continue  # 18 brought the choice of axes, nothing else
        else:
            raise ModelError(f"{node.op_type} of opset 18 cannot be turned into opset 17's")
    for entry in proto.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = 17
    used = {name for node in proto.graph.node for name in node.input}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def _unchanged(op_type: str) -> bool:
    # TypeProto and attributes of a schema are fixed by the version it dates from.
    new: int = onnx.defs.get_schema(op_type, 18).since_version
    return new < 18


def _axes_to_attribute(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    if len(node.input) < 2 or not node.input[1]:
        return
    if node.input[1] not in constants:
        raise ModelError(f"{node.op_type} with axes known only at run time needs opset 18")
    axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
    del node.input[1:]
    kept = [a for a in node.attribute if a.name != "noop_with_empty_axes"]
    del node.attribute[:]
    node.attribute.extend(kept)
    if axes:
        node.attribute.append(onnx.helper.make_attribute("axes", axes))


def _drop_num_outputs(node: onnx.NodeProto, shapes: Mapping[str, Sequence[Any]]) -> None:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if "num_outputs" not in attributes:
        return
    dims = shapes.get(node.input[0], ())
    axis = attributes.get("axis", 0)
    size = dims[axis].dim_value if -len(dims) <= axis < len(dims) else 0
    if size == 0 or size % attributes["num_outputs"]:
        raise ModelError("a Split into unequal parts needs opset 18")
    kept = [a for a in node.attribute if a.name != "num_outputs"]
    del node.attribute[:]
    node.attribute.extend(kept)
