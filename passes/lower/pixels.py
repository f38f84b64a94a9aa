"""Casts of 8-bit images to float, moved in front of what only moves pixels.

TensorRT takes uint8 as an input of the network and lets nothing but a cast to float read it: a
camera frame that is transposed, cropped or has its colours reversed first cannot be parsed. All of
0 to 255 are exact in fp32 and in fp16, so that casting first gives the same values.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tcompile.core.graph import bypass, cast_node, is_const, replace_uses, value
from tcompile.core.op_traits import MOVES
from tcompile.core.rounding import FLOAT32, as_dtype

_UINT8 = np.dtype(np.uint8)
#: Give values that they were given.
_MOVES = MOVES | {"DepthToSpace", "SpaceToDepth"}


def cast_pixels_first(graph: gs.Graph) -> int:
    """Cast uint8 inputs to fp32 before they are moved, in place; returns how many were.

    An input is left alone where a uint8 value that comes from it is computed with, or given by the
    graph: to say so is the runtime's business. Nothing else changes, names included.
    """
    outputs = {t.name for t in graph.outputs}
    cast: set[str] = set()
    for image in [t for t in graph.inputs if t.dtype == _UINT8]:
        if image.name in cast or all(user.op == "Cast" for user in image.outputs):
            continue
        region = _region([image], outputs)
        if region is not None:
            _cast_first(graph, *region)
            cast |= {each.name for each in region[0]}
    graph.nodes[:] = [node for node in graph.nodes if node.outputs]
    return len(cast)


def _cast_first(
    graph: gs.Graph, images: list[gs.Tensor], moved: list[gs.Node], constants: set[str]
) -> None:
    wides = []
    for image in images:
        wide = gs.Variable(f"{image.name}_fp32", FLOAT32, image.shape)
        replace_uses(image, wide)
        graph.nodes.insert(0, cast_node(image, wide, onnx.TensorProto.FLOAT))
        wides.append(wide)
    for node in moved:
        for i, tensor in enumerate(node.inputs):
            if is_const(tensor) and tensor.name in constants:
                numbers = value(tensor).astype(np.float32)
                node.inputs[i] = gs.Constant(f"{tensor.name}_fp32", numbers)
        for tensor in node.outputs:
            tensor.dtype = FLOAT32
    for tensor in [*wides, *(t for node in moved for t in node.outputs)]:
        for cast in [user for user in tensor.outputs if user.op == "Cast"]:
            # The person's own cast: nothing is left to do for it.
            if as_dtype(cast.attrs["to"]) == FLOAT32:
                bypass(graph, cast, tensor)


def _region(
    images: list[gs.Tensor], outputs: set[str]
) -> tuple[list[gs.Tensor], list[gs.Node], set[str]] | None:
    """Images that are joined, the nodes that move their values until they are cast, and the
    constants that these join to them; None where anything else reads them."""
    moved: list[gs.Node] = []
    constants: set[str] = set()
    pending = [user for image in images for user in image.outputs]
    seen: set[int] = set()
    inside = {image.name for image in images}
    while pending:
        node = pending.pop()
        if id(node) in seen or node.op == "Cast":
            continue
        seen.add(id(node))
        if node.op not in _MOVES or node.domain or any(t.name in outputs for t in node.outputs):
            return None
        moved.append(node)
        inside |= {t.name for t in node.outputs}
        pending += [user for t in node.outputs for user in t.outputs]
    for node in moved:
        for tensor in _values(node):
            if is_const(tensor):
                constants.add(tensor.name)
            elif tensor.name not in inside:
                other = _image_of(tensor)
                return None if other is None else _region([*images, other], outputs)
    return images, moved, constants


def _image_of(tensor: gs.Tensor) -> gs.Tensor | None:
    """The uint8 input of the graph that a tensor holds values of; None where it is computed."""
    while tensor.inputs:
        maker = tensor.inputs[0]
        sources = [t for t in _values(maker) if not is_const(t)] if maker.op in _MOVES else []
        if not sources:
            return None
        tensor = sources[0]
    return tensor if tensor.dtype == _UINT8 else None


def _values(node: gs.Node) -> list[gs.Tensor]:
    """The inputs of a node that moves values: those that hold values, not places."""
    return list(node.inputs) if node.op == "Concat" else list(node.inputs)[:1]
