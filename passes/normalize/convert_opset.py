"""Old opsets brought to the oldest that is read as it is, by ONNX's own converter."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import onnx
from onnx import version_converter
from onnx.numpy_helper import from_array, to_array
from onnx.reference import ReferenceEvaluator

from tcompile.core.errors import ModelError
from tcompile.core.load import OLDEST_OPSET, opset_of
from tcompile.core.well_formed import without_weights

Array = np.ndarray[Any, Any]

#: The opset from which on Resize says where it samples.
_COORDINATES = 11
#: The opset from which on there is Resize, and no Upsample.
_SHRINKS = 10
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
        _keep_coordinates(made, made.graph, {}, shrinks=old >= _SHRINKS)
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


def _keep_coordinates(
    model: onnx.ModelProto,
    graph: onnx.GraphProto,
    outer: Mapping[str, onnx.TensorProto],
    *,
    shrinks: bool,
) -> None:
    """Let Resize sample as it did before it had modes, which the converter leaves at other ones.

    Args:
        outer: values that are stored around the graph.
        shrinks: whether an axis may become shorter, which Upsample does not let it.

    Raises:
        ModelError: one mode does not say where each axis was sampled.
    """
    values = {**outer, **{t.name: t for t in graph.initializer}}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            values[node.output[0]] = node.attribute[0].t
    for node in graph.node:
        for inner in _branches(node):
            _keep_coordinates(model, inner, values, shrinks=shrinks)
        if node.op_type == "Resize":
            mode = next((a.s for a in node.attribute if a.name == "mode"), b"nearest")
            rounding = "floor"
            if mode == b"nearest" and shrinks:
                scales = node.input[2]
                stored = values.get(scales)
                numbers = _computed(model, scales) if stored is None else to_array(stored)
                rounding = _rounding(node, numbers)
            node.attribute.extend(
                [
                    onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"),
                    onnx.helper.make_attribute("nearest_mode", rounding),
                ]
            )


def _rounding(node: onnx.NodeProto, scales: Array | None) -> str:
    """Return how the one nearest was found: an axis that shrinks was rounded up, others down."""
    name = node.name or node.output[0]
    hint = f"export it with opset {_COORDINATES} or newer"
    if scales is None:
        raise ModelError(
            f"Resize '{name}' computes its scales, and how it rounds hangs on them", hint=hint
        )
    # Where each second, fourth ... place is taken, there is nothing to round.
    rounded = [scale for scale in scales.tolist() if scale >= 1 or math.frexp(scale)[0] != 0.5]
    up = [scale < 1 for scale in rounded if scale != 1]
    if any(up) and not all(up):
        raise ModelError(
            f"Resize '{name}' makes one axis longer and another shorter, which are rounded "
            "in two ways",
            hint=hint,
        )
    return "ceil" if any(up) else "floor"


def _computed(model: onnx.ModelProto, name: str) -> Array | None:
    """The value of a tensor of the graph that constants and known sizes settle; None where none
    do. The batch is tried at two sizes."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError:
        graph = model.graph
    known = {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info)}
    makers = {out: node for node in model.graph.node for out in node.output}
    stored = {t.name: t for t in model.graph.initializer}
    found: list[Array] = []
    for batch in (1, 3):
        feeds: dict[str, onnx.TensorProto] = {}
        needed: set[str] = set()
        left = [name]
        while left:
            tensor = left.pop()
            if not tensor or tensor in feeds or tensor in needed:
                continue
            maker = makers.get(tensor)
            if tensor in stored:
                feeds[tensor] = stored[tensor]
            elif maker is None or _branches(maker):
                return None
            elif maker.op_type == "Shape":
                source = known.get(maker.input[0])
                dims = [] if source is None else list(source.shape.dim)
                sizes = [d.dim_value or (batch if i == 0 else 0) for i, d in enumerate(dims)]
                if not sizes or 0 in sizes:
                    return None
                feeds[tensor] = from_array(np.asarray(sizes, np.int64), tensor)
            else:
                needed.update(maker.output)
                left += maker.input
        nodes = [n for n in model.graph.node if needed.intersection(n.output)]
        output = onnx.helper.make_empty_tensor_value_info(name)
        part = onnx.helper.make_graph(nodes, "scales", [], [output], list(feeds.values()))
        alone = onnx.helper.make_model(part, opset_imports=model.opset_import)
        try:
            (number,) = cast(Sequence[Any], ReferenceEvaluator(alone).run([name], {}))
            found.append(np.asarray(number))
        except Exception:  # What the reference does not compute is not known.
            return None
    return found[0] if np.array_equal(found[0], found[1]) else None


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
