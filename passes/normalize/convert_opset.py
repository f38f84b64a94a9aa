"""Old opsets brought to the oldest that is read as it is, by ONNX's own converter."""

from __future__ import annotations

import re

import numpy as np
import onnx
from onnx import version_converter

from tcompile.core.errors import ModelError
from tcompile.core.load import OLDEST_OPSET, opset_of
from tcompile.core.well_formed import without_weights

#: The opset from which on Resize says where it samples.
_COORDINATES = 11
#: Where in its own source the converter failed.
_PATH = re.compile(r"\S+\.(?:h|cc):\d+: \w+: (?:Assertion `.*?` failed: )?")


def to_known_opset(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """Return the model in an opset that is read, and a note on that; empty where it was one.

    Raises:
        ModelError: the converter fails; names the node.
    """
    old = opset_of(model)
    if old >= OLDEST_OPSET:
        return model, ""
    bare = without_weights(model)
    kept = {t.name for t in bare.graph.initializer}
    large = [t for t in model.graph.initializer if t.name not in kept]
    # From version 4 of the format on, a weight need not be an input too.
    bare.ir_version = max(bare.ir_version, 4)
    inputs = [v for v in bare.graph.input if v.name not in kept]
    del bare.graph.input[:]
    bare.graph.input.extend(inputs)
    try:
        made = version_converter.convert_version(bare, OLDEST_OPSET)
    except Exception as error:  # The converter raises RuntimeError and others of its own.
        node = _failing(bare)
        where = "" if node is None else f" at {node.op_type} '{node.name}'"
        reason = _PATH.sub("", " ".join(str(error).split()))[-200:]
        raise ModelError(
            f"opset {old} cannot be converted to {OLDEST_OPSET}{where}: {reason}",
            hint=f"export it with opset {OLDEST_OPSET} or newer",
        ) from error
    _keep_hardmax(made.graph)
    if old < _COORDINATES:
        _keep_coordinates(made.graph)
    weights = {t.name for t in large}
    inputs = [v for v in made.graph.input if v.name not in weights]
    del made.graph.input[:]
    made.graph.input.extend(inputs)
    made.graph.initializer.extend(large)
    made.metadata_props.extend(model.metadata_props)
    return made, f"the file has opset {old}; it was read as converted to {OLDEST_OPSET}"


def _keep_hardmax(graph: onnx.GraphProto) -> None:
    """Let Hardmax look at all axes from its own on at once, which the converter does not."""
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for inner in _branches(node):
            _keep_hardmax(inner)
        if node.op_type != "Hardmax":
            nodes.append(node)
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        (x,), (out,) = node.input, node.output
        make = onnx.helper.make_node
        nodes += [
            make("Shape", [x], [f"{out}/dims"]),
            make("Flatten", [x], [f"{out}/flat"], axis=axis),
            make("Hardmax", [f"{out}/flat"], [f"{out}/found"], name=node.name, axis=-1),
            make("Reshape", [f"{out}/found", f"{out}/dims"], [out]),
        ]
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _branches(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside a node, such as those of an If."""
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


def _keep_coordinates(graph: onnx.GraphProto) -> None:
    """Let Resize sample as it did before it had modes, which the converter leaves at other ones."""
    values = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            values[node.output[0]] = node.attribute[0].t
    for node in graph.node:
        if node.op_type == "Resize":
            scales = values.get(node.input[2]) if len(node.input) > 2 else None
            numbers = onnx.numpy_helper.to_array(scales) if scales is not None else np.ones(1)
            rounding = "ceil" if (numbers < 1).any() else "floor"
            node.attribute.extend(
                [
                    onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"),
                    onnx.helper.make_attribute("nearest_mode", rounding),
                ]
            )


def _failing(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """The first node that the converter does not convert by itself."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError:
        graph = model.graph
    known = {v.name: v for v in (*graph.input, *graph.value_info, *graph.output)}
    stored = {t.name: t for t in graph.initializer}
    nodes: list[onnx.NodeProto] = list(model.graph.node)
    for node in nodes:
        alone = onnx.helper.make_graph(
            [node],
            "one",
            [known[n] for n in node.input if n in known and n not in stored],
            [known.get(n) or onnx.helper.make_empty_tensor_value_info(n) for n in node.output],
            [stored[n] for n in node.input if n in stored],
        )
        one = onnx.helper.make_model(
            alone, opset_imports=model.opset_import, ir_version=model.ir_version
        )
        try:
            version_converter.convert_version(one, OLDEST_OPSET)
        except Exception:
            return node
    return None
